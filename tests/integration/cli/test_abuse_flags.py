"""`sma devices flagged` and `reviewed`, on a register that somebody overuses."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.integration.cli.conftest import Place, assert_refused
from tests.support.days import DAY, today


def active(place: Place, device_serial: str, pictures: int, *, days_ago: int = 0) -> None:
    """Let a device have made pictures."""
    with closing(sqlite3.connect(place.data_dir / "sma.db")) as database, database:
        database.execute(
            "INSERT OR REPLACE INTO device_activity VALUES (?, ?, ?, ?)",
            (f"{today() - days_ago * DAY:%Y-%m-%d}", device_serial, pictures, pictures),
        )


@pytest.fixture
def overused(place: Place) -> Place:
    """A register of two devices, one of them far above its usual rate."""
    for serial in ("busy", "loud"):
        made = place.sma("provision", serial, "--output-dir", str(place.data_dir / serial))
        assert made.returncode == 0, made.stderr
    for serial in ("busy", "loud"):
        for days_ago in range(1, 9):
            active(place, serial, 60 if serial == "busy" else 50, days_ago=days_ago)
        active(place, serial, 550)
    return place


def test_nothing_is_flagged(place: Place) -> None:
    shown = place.sma("devices", "flagged")
    assert (shown.returncode, shown.stdout) == (0, "No device is flagged.\n")
    checked = place.sma("devices", "flagged", "--check", "--json")
    assert json.loads(checked.stdout) == {
        "total": 0,
        "flags": [],
        "next_cursor": None,
        "newly_flagged": 0,
        "newly_suspended": 0,
        "spared": 0,
    }


def test_a_flag_is_found_shown_and_put_aside(overused: Place) -> None:
    """With the counts that caused it, until somebody says that it was looked at."""
    checked = overused.sma("devices", "flagged", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "Checked: 1 newly flagged, 0 of them suspended." in checked.stderr
    heading, row = checked.stdout.splitlines()
    assert heading.split("  ")[0] == "DEVICE"
    assert row.split() == [
        *("loud", "Raspberry", "Pi", f"{today():%Y-%m-%d}", "550", "50.0", "in", "8", "d", "500"),
        *("flag", "active"),
    ]
    told = json.loads(overused.sma("devices", "flagged", "--json").stdout)
    assert told["total"] == 1
    [flag] = told["flags"]
    assert flag.pop("flagged_at").endswith("Z")
    assert flag == {
        "device_serial": "loud",
        "device_family": "Raspberry Pi",
        "status": "active",
        "day": f"{today():%Y-%m-%d}",
        "mode": "flag",
        "pictures": 550,
        "usual": 50.0,
        "days_compared": 8,
        "threshold": 500,
        "reviewed_at": None,
    }
    done = overused.sma("devices", "reviewed", "loud", "--day", f"{today():%Y-%m-%d}")
    assert (done.returncode, done.stdout) == (0, "1 flag of loud marked as reviewed.\n")
    assert overused.sma("devices", "flagged").stdout == "No device is flagged.\n"
    assert "flag, reviewed" in overused.sma("devices", "flagged", "--all").stdout
    assert_refused(overused.sma("devices", "reviewed", "loud"), 5, "no flag that waits")
    assert_refused(overused.sma("devices", "reviewed", "nobody"), 5, "No device nobody")


def test_the_settings_count(overused: Place) -> None:
    """Flags, else the environment: as for a server."""
    shadow = {"SMA_ABUSE": "shadow", "SMA_ABUSE_FACTOR": "9"}
    checked = overused.sma("devices", "flagged", "--check", "--shadow", settings=shadow)
    assert "2 newly flagged" in checked.stderr
    assert len(checked.stdout.splitlines()) == 3
    assert overused.sma("devices", "flagged").stdout == "No device is flagged.\n"
    suspended = overused.sma(
        *("devices", "flagged", "--check", "--abuse", "suspend", "--json"), settings=shadow
    )
    told = json.loads(suspended.stdout)
    assert (told["newly_flagged"], told["newly_suspended"]) == (2, 2)
    assert {each["status"] for each in told["flags"]} == {"suspended"}
    done = overused.sma("devices", "reviewed", "busy").stdout
    assert "The device is still suspended. To end that: sma devices reinstate 'busy'" in done


def test_off_has_nothing_to_check(place: Place) -> None:
    refused = place.sma("devices", "flagged", "--check", "--abuse", "off")
    assert_refused(refused, 3, "SMA_ABUSE is off")


def test_a_long_list_is_cut_and_says_so(place: Place) -> None:
    for number in range(4):
        active(place, f"loud-{number}", 600 + number)
    shown = place.sma("devices", "flagged", "--check", "--limit", "2").stdout
    assert "loud-3" in shown
    assert "loud-1" not in shown
    assert shown.endswith("\n4 in all. To see more: --limit 4\n")
