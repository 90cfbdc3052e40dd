"""`sma tables rotate`, `list`, `stragglers`, `end`, `exposure`: what operators and scripts see."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.cli.conftest import Place, assert_refused


def answer_of(place: Place, *arguments: str) -> Any:
    """Run a command that must succeed; return its JSON."""
    result = place.sma("tables", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def fleet(place: Place) -> tuple[Place, list[int]]:
    """An authority with two devices, and the tables of the first."""
    for serial in ("camera-1", "camera-2"):
        assert place.sma("provision", serial).returncode == 0
    shown = place.sma("devices", "show", "camera-1", "--json")
    return place, json.loads(shown.stdout)["table_assignments"]


def test_the_stolen_camera(fleet: tuple[Place, list[int]]) -> None:
    """From the question who is exposed to the end of the overlap."""
    place, tables = fleet
    exposed = answer_of(place, "exposure", "--device", "CAMERA-1")
    assert [each["table_id"] for each in exposed["tables"]] == tables
    assert exposed["devices"] <= 1
    assert "devices exposed" in place.sma("tables", "exposure", *map(str, tables)).stdout

    planned = answer_of(place, "rotate", "--device", "camera-1", "--dry-run")
    assert (planned["rotated"], [each["epoch"] for each in planned["tables"]]) == (False, [1] * 3)
    none = {"total": 2_500, "open_overlaps": 0, "tables": [], "next_cursor": None}
    assert answer_of(place, "list", "--open") == none

    asked = place.sma("tables", "rotate", "--device", "camera-1")
    assert asked.returncode == 2
    assert "3 key tables will get new keys" in asked.stderr
    assert "--yes" in asked.stderr
    assert answer_of(place, "list", "--open")["tables"] == []

    for_a_week = ("--accept-earlier-for", "7d", "--yes")
    rotated = answer_of(place, "rotate", "--device", "camera-1", *for_a_week)
    assert rotated["rotated"]
    assert [each["table_id"] for each in rotated["tables"]] == tables
    assert all(each["devices"] >= 1 for each in rotated["tables"])
    until = datetime.fromisoformat(rotated["accepted_until"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < until < timedelta(days=7, minutes=5)

    listed = answer_of(place, "list", "--open")
    assert listed["open_overlaps"] == 3
    assert [(each["table_id"], each["epoch"]) for each in listed["tables"]] == [
        (each, 1) for each in tables
    ]
    again = place.sma("tables", "rotate", "--all", "--yes")
    assert_refused(again, 5, "3 key tables were rotated before", "sma tables end")

    late = answer_of(place, "stragglers", str(tables[0]))
    assert late["devices"][0]["device_serial"] == "camera-1"
    assert late["devices"][0]["earlier_keys"][0] == {
        "table_id": tables[0],
        "epoch": 0,
        "current_epoch": 1,
        "accepted_until": rotated["accepted_until"],
    }
    shown = place.sma("tables", "stragglers")
    assert "camera-1" in shown.stdout
    assert "0 of 1" in shown.stdout

    assert place.sma("tables", "end", "--all").returncode == 2
    ended = answer_of(place, "end", "--all", "--yes")
    assert (ended["ended"], ended["devices_cut_off"] >= 1) == (tables, True)
    assert answer_of(place, "end", "--all") == {"ended": [], "devices_cut_off": 0}
    assert "cut off" in place.sma("tables", "stragglers").stdout


def test_all_tables(place: Place) -> None:
    """Once for all; no device is there yet, so nobody is a straggler."""
    rotated = answer_of(place, "rotate", "--all", "--yes")
    assert len(rotated["tables"]) == 2_500
    assert rotated["devices"] == 0
    assert answer_of(place, "stragglers") == {"total": 0, "devices": []}
    page = answer_of(place, "list", "--limit", "2", "--after", "2497")
    assert [each["table_id"] for each in page["tables"]] == [2_498, 2_499]
    text = place.sma("tables", "list", "--limit", "1").stdout
    assert "2,500 overlaps are open" in text
    assert "--after 0" in text
    assert "No overlap is open" not in text
    assert "2,500 key tables" in place.sma("secrets", "check").stdout
    assert place.sma("provision", "new").returncode == 0
    assert answer_of(place, "stragglers")["total"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["rotate"], 2, "Give table ids"),
        (["rotate", "3", "--all"], 2, "Give table ids"),
        (["rotate", "3", "--device", "x", "--yes"], 2, "Give table ids"),
        (["rotate", "3", "--accept-earlier-for", "soon"], 2, "is no duration"),
        (["rotate", "--", "-1"], 2, "greater than or equal to 0"),
        (["exposure"], 2, "Give table ids"),
        (["end"], 2, "Give table ids"),
    ],
)
def test_wrong_usage(place: Place, arguments: list[str], code: int, word: str) -> None:
    """Says what is missing, and changes nothing."""
    result = place.sma("tables", *arguments)
    assert result.returncode == code
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_what_does_not_exist(place: Place) -> None:
    """Tables and devices."""
    assert_refused(place.sma("tables", "rotate", "2500", "--yes"), 5, "no key table 2500")
    assert_refused(place.sma("tables", "stragglers", "99999999999999999999"), 5, "no key table")
    assert_refused(place.sma("tables", "rotate", "--device", "nobody", "--yes"), 5, "nobody")
