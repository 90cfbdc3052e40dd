"""The picture of a report: well formed, whatever stands in the report."""

from copy import deepcopy
from typing import Any
from xml.etree import ElementTree

from birthmark_sma.simulation.chart import chart, interruptions
from birthmark_sma.simulation.player import BINS

REPORT: dict[str, Any] = {
    "all_right": True,
    "begun_at": "2026-01-31T12:00:00Z",
    "terms": {"cameras": 3, "seconds": 60.0, "aggregators": 2, "seed": 1, "day": True},
    "pictures": {"planned": 10, "taken": 10},
    "bundles": {"sent": 20, "right": 20, "wrong": 0, "lost": 0},
    "indeterminate": {"bundles": 0, "times": 0, "causes": {}},
    "verdict_seconds": {"p50": 0.012, "p99": 0.1, "longest": 1.5},
    "latest_picture_seconds": 0.01,
    "cases": [
        {"case": "genuine", "right": ["PASS"], "bundles": 18, "bundles_right": 18, "unseen": False},
        {"case": "clone", "right": ["PASS"], "bundles": 2, "bundles_right": 2, "unseen": True},
    ],
    "unseen": [{"case": "clone", "why": "A clone <is> the camera & nobody sees it. " * 9}],
    "thefts": [],
    "course": {each: [1] * BINS for each in ("passed", "refused", "wrong")},
}


def texts(report: dict[str, Any]) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(chart(report)).iter() if each.text]


def test_it_says_that_all_was_right() -> None:
    told = texts(REPORT)
    assert "All 20 endings were right, and none was lost" in told
    assert told.count("all ✓") == 2
    assert "clone *" in told
    assert any("<is> the camera &" in each for each in told)


def test_it_says_what_was_wrong() -> None:
    report = deepcopy(REPORT)
    report["all_right"] = False
    report["bundles"] |= {"wrong": 2, "lost": 1}
    report["pictures"]["taken"] = 9
    report["cases"][0]["bundles_right"] = 15
    told = texts(report)
    assert "2 endings were wrong, 1 bundle was lost, 1 picture was not taken" in told
    assert "15 of 18 ✗" in told


def test_it_says_that_there_was_an_outage() -> None:
    """Threat 19: as no FAIL, and what became of it."""
    report = deepcopy(REPORT)
    assert interruptions(report) is None
    causes = {"circuit_open": 1_200, "unreachable": 4}
    report["indeterminate"] = {"bundles": 9, "times": 1_204, "causes": causes}
    assert (
        "INDETERMINATE, which is no FAIL: 1,204 times (circuit_open 1,200, unreachable 4) for 9"
        " bundles; all were asked about again, and none was lost." in " ".join(texts(report))
    )
    report["bundles"]["lost"] = 2
    assert any(each.endswith("; 2 were lost.") for each in texts(report))


def test_an_empty_run_can_be_drawn() -> None:
    report = deepcopy(REPORT) | {"cases": [], "unseen": [], "verdict_seconds": None}
    report["course"] = {each: [0] * BINS for each in ("passed", "refused", "wrong")}
    assert texts(report)


def test_it_has_both_schemes_and_loads_nothing() -> None:
    drawn = chart(REPORT)
    assert "prefers-color-scheme: dark" in drawn
    for each in ("<script", "href", "url(", "@import"):
        assert each not in drawn
