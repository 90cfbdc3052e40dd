"""A whole fleet against real servers: every verdict right, none lost, and the database agrees.

`make soak` plays 200 cameras for a minute at 300 pictures a second, `make test` a small fleet.
"""

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from birthmark_sma.simulation.expected_outcomes import CLONES, REPLAYS, TAMPERING, Case
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial
from tests.support.programs.server import SMA
from tests.support.soak import SOAKING

FLEET = (
    ("--cameras", "200", "--duration", "60", "--rate", "300", "--seed", "1")
    if SOAKING
    # A seed that has two cameras reported early, so that there are pictures after that.
    else (
        *("--cameras", "25", "--duration", "5", "--rate", "60", "--seed", "97"),
        *("--stolen", "0.1", "--replays", "0.04"),
    )
)


def run(running: Running, folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Play a fleet, and return its report."""
    done = sma(
        "simulate", "fleet", running.server.url, *arguments, "--json", environ=running.environ,
        cwd=folder, seconds=400,
    )  # fmt: skip
    assert done.returncode == code, done.stderr + done.stdout[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def endings(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What each case came to."""
    return {each["case"]: each["ended"] for each in report["cases"]}


def test_every_verdict_is_right_and_none_is_lost(running: Running, tmp_path: Path) -> None:
    """Threats 6, 14 and 19: 5 % tampering, 2 % clones, replays, thefts, clocks, offline spells."""
    prefix = new_serial("fleet")
    trail = "SELECT count(*) FROM validation_history"
    [(before,)] = running.rows(trail)
    report = run(
        running, tmp_path, *FLEET, "--tampering", "0.05", "--clones", "0.02",
        "--settle", "120", "--serial-prefix", prefix,
        "--report", "report.json", "--picture", "report.svg",
        "--report-command", f"{' '.join(SMA)} devices suspend",
    )  # fmt: skip
    bundles = report["bundles"]
    assert report["all_right"]
    assert bundles["right"] == bundles["sent"] == 2 * report["pictures"]["planned"]
    assert bundles["wrong"] == bundles["lost"] == 0
    ended = endings(report)
    assert set(ended) >= {*TAMPERING, *CLONES, *REPLAYS, Case.GENUINE}
    # On a busy machine the command that reports may take as long as the small fleet.
    assert ended.keys() & ({Case.REPORTED} if SOAKING else {Case.REPORTED, Case.BEING_REPORTED})
    assert ended.get(Case.REPORTED, {"FAIL": 0}).keys() == {"FAIL"}
    assert ended[Case.CLONE_OTHER_SENSOR].keys() == {"FAIL"}
    told_apart = {each["case"] for each in report["unseen"]}
    assert {Case.CLONE_SAME_SENSOR, Case.REUSED_CAMERA_TOKEN} <= told_apart
    # What the authority wrote down is what the aggregation servers were told, and three probes.
    told = sum(each[v] for each in ended.values() for v in ("PASS", "FAIL") if v in each)
    [(after,)] = running.rows(trail)
    assert after - before == told + 3
    suspended = running.rows(
        "SELECT count(*) FROM registered_devices WHERE status = 'suspended'"
        " AND device_serial LIKE ?",
        f"{prefix}%",
    )
    assert suspended == [(len(report["thefts"]),)]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    ElementTree.parse(tmp_path / "report.svg")
    if SOAKING:
        print(json.dumps(bundles | report["verdict_seconds"]))  # noqa: T201  what a soak is for


def test_a_wrong_verdict_is_told(running: Running, tmp_path: Path) -> None:
    """A report that could only be good would be worth nothing: the command here reports nobody."""
    report = run(
        running, tmp_path, "--cameras", "3", "--duration", "2", "--rate", "40", "--stolen", "0.7",
        "--even", "--seed", "2", "--report-command", "true", code=1,
    )  # fmt: skip
    assert not report["all_right"]
    assert report["bundles"]["wrong"] > 0
    assert report["bundles"]["lost"] == 0
    wrong = report["surprises"][0]
    assert (wrong["case"], wrong["ended"], wrong["right"]) == (Case.REPORTED, "PASS", ["FAIL"])


def test_a_report_that_fails_is_told(running: Running, tmp_path: Path) -> None:
    report = run(
        running, tmp_path, "--cameras", "2", "--duration", "1", "--rate", "10", "--stolen", "0.5",
        "--even", "--seed", "2", "--report-command", "sh -c 'echo no such luck >&2; exit 3'",
        code=1,
    )  # fmt: skip
    [theft] = report["thefts"]
    assert theft["failure"] == "The command ended with 3: no such luck"
    assert report["bundles"]["wrong"] == 0


@pytest.mark.parametrize("arguments", [("--cameras", "0"), ("--tampering", "2")], ids=" ".join)
def test_what_cannot_be_is_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = sma("simulate", "fleet", "http://127.0.0.1:1", *arguments, environ=dict(os.environ))
    assert done.returncode == 2
