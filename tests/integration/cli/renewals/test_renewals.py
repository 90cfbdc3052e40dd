"""`sma renewals`: order, watch, cancel."""

import json
from typing import Any

import pytest

from tests.integration.cli.conftest import Place, assert_refused
from tests.support.cameras.camera import Camera
from tests.support.programs.server import Server


@pytest.fixture
def fleet(place: Place) -> tuple[Place, list[Camera]]:
    """An authority with three devices."""
    with Server(place.data_dir) as server, server.client() as client:
        cameras = [Camera.provisioned(client, serial) for serial in ("a", "b", "c")]
    return place, cameras


def ordered(place: Place, *arguments: str) -> dict[str, Any]:
    """Order, and return what a script is told."""
    given = place.sma("renewals", "order", *arguments, "--yes", "--json")
    assert given.returncode == 0, given.stderr
    told: dict[str, Any] = json.loads(given.stdout)
    return told


def listed(place: Place) -> list[dict[str, Any]]:
    """Return the orders, the newest first."""
    orders: list[dict[str, Any]] = json.loads(place.sma("renewals", "list", "--json").stdout)[
        "orders"
    ]
    return orders


def test_an_orders_life(fleet: tuple[Place, list[Camera]]) -> None:
    """Tried, given, watched, cancelled."""
    place, cameras = fleet
    assert place.sma("renewals", "list").stdout == "No renewal was ordered.\n"
    tried = place.sma("renewals", "order", "--all", "--dry-run")
    assert "would renew within 7d. Nothing was ordered." in tried.stdout
    assert listed(place) == []

    told = ordered(place, "--family", "Test", "--within", "12h")
    assert told["matched"] == len(cameras)
    assert told["order"]["device_family"] == "Test"
    assert told["order"]["table_id"] is None
    [order] = listed(place)
    assert (order["renewed"], order["left"]) == (0, len(cameras))
    shown = place.sma("renewals", "list").stdout
    assert "family Test" in shown
    assert "open" in shown

    number = str(told["order"]["id"])
    assert place.sma("renewals", "cancel", number).stdout == f"Order {number} is cancelled.\n"
    assert "Nothing was changed" in place.sma("renewals", "cancel", number).stdout
    assert "cancelled" in place.sma("renewals", "list").stdout
    again = json.loads(place.sma("renewals", "cancel", number, "--json").stdout)
    assert again == {"order": int(number), "changed": False}


def test_criteria_are_combined(fleet: tuple[Place, list[Camera]]) -> None:
    """An intermediate's name, a table, and a family that nobody has."""
    place, cameras = fleet
    order = ("renewals", "order", "--dry-run", "--json")
    table = str(min(cameras[0].table_keys))
    by_table = json.loads(place.sma(*order, "--table", table).stdout)["matched"]
    assert 1 <= by_table <= len(cameras)
    assert json.loads(place.sma(*order, "--issuer", "intermediate").stdout)["matched"] == len(
        cameras
    )
    nobody = place.sma(*order, "--issuer", "intermediate", "--family", "nobody's")
    assert json.loads(nobody.stdout) == {"matched": 0, "order": None}
    assert_refused(
        place.sma("renewals", "order", "--family", "nobody's", "--yes"), 5, "Nothing was ordered"
    )


def test_nothing_means_all_by_accident(place: Place) -> None:
    """Neither does --all beside a filter; and no script orders without --yes."""
    for wrong in ((), ("--all", "--family", "Test")):
        refused = place.sma("renewals", "order", *wrong)
        assert refused.returncode == 2
        assert "--all" in refused.stderr
    for within, reason in [("0d", "a second"), ("366d", "365 days"), ("soon", "12h")]:
        refused = place.sma("renewals", "order", "--all", "--within", within)
        assert refused.returncode == 2
        assert reason in refused.stderr
    assert_refused(place.sma("renewals", "cancel", "7"), 5, "sma renewals list")
    for too_large in (("cancel", str(2**63)), ("order", "--yes", "--table", str(2**63))):
        refused = place.sma("renewals", *too_large)
        assert refused.returncode == 2, refused.stderr
        assert "2147483647" in refused.stderr


def test_a_script_says_yes(fleet: tuple[Place, list[Camera]]) -> None:
    """Without a terminal nobody can be asked."""
    place, _ = fleet
    refused = place.sma("renewals", "order", "--all")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert listed(place) == []
