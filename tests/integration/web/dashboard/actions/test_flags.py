"""Review abuse flags in the dashboard: one, or several in one act."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx2
import pytest

from birthmark_sma.authority.devices import abuse_flags
from birthmark_sma.authority.devices.abuse_flags import Flag, FlagMode
from tests.integration.web.dashboard.actions.conftest import (
    confirmation,
    list_acts,
    provision,
    status_of,
)
from tests.integration.web.dashboard.conftest import Guarded, form_of
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.devices.acts import suspend_device
from tests.support.programs.running import new_serial

LIST = "/dashboard/flags"
REVIEW = "/dashboard/flags/review"


def flag(guarded: Guarded, serial: str, days_ago: int = 0) -> str:
    """Flag a device, and return the value of the flag in a form."""
    now = datetime.now(UTC)
    day = now.date() - timedelta(days=days_ago)
    with guarded.database.write() as transaction:
        new = Flag(serial, day, FlagMode.FLAG, 900, 12.25, 12, 90, now)
        abuse_flags.add_flags(transaction, [new])
    return f"{day} {serial}"


def open_flags(guarded: Guarded, serial: str) -> int:
    with guarded.database.read() as connection:
        found = abuse_flags.list_flags_of_device(connection, serial, limit=10)
    return sum(each.reviewed_at is None for each in found)


def test_several_flags_are_reviewed_in_one_act(guarded: Guarded, operator: httpx2.Client) -> None:
    """Those that were not chosen stay open, and the status of no device changes."""
    serials = provision(guarded, new_serial("<b>"), new_serial(), new_serial())
    flags = [flag(guarded, each) for each in serials]
    earlier = flag(guarded, serials[0], days_ago=1)
    suspend_device(guarded.database, serials[0])
    page = operator.get(LIST)
    assert_strict(page)
    assert all(each in unescape(page.text) for each in (*flags, earlier))
    preview = operator.post(REVIEW, data={"form": form_of(page), "flag": flags[:2]})
    assert "Review 2 flags" in preview.text
    assert open_flags(guarded, serials[1]) == 1
    fields = confirmation(preview)
    done = operator.post(REVIEW, data=fields)
    assert done.status_code == 303
    assert [open_flags(guarded, each) for each in serials] == [1, 0, 1]
    assert status_of(guarded, serials[0]) == "suspended"
    [act] = list_acts(guarded, serials[1])
    assert (act.act, act.subjects, act.source) == ("device.review-flags", 2, "dashboard")
    again = operator.post(REVIEW, data=fields)
    assert (again.status_code, again.headers["location"]) == (303, done.headers["location"])
    listed = unescape(operator.get(LIST).text)
    assert flags[1] not in listed
    assert serials[1] in operator.get(LIST, params={"show": "all"}).text


def test_the_flags_of_a_device(guarded: Guarded, operator: httpx2.Client) -> None:
    """Its page leads to the review of all that are open."""
    [serial] = provision(guarded, new_serial())
    for days_ago in range(3):
        flag(guarded, serial, days_ago)
    device = operator.get("/dashboard/device", params={"serial": serial}).text
    [link] = re.findall(rf'href="({REVIEW}[^"]+)"', device)
    preview = operator.get(unescape(link))
    assert "Review 3 flags" in preview.text
    assert operator.post(REVIEW, data=confirmation(preview)).status_code == 303
    assert open_flags(guarded, serial) == 0
    assert operator.get(unescape(link)).status_code == 409
    assert REVIEW not in operator.get("/dashboard/device", params={"serial": serial}).text


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 422),
        ({"flag": "today camera-1"}, 422),
        ({"flag": "2026-01-01 nobody", "confirmed": "yes"}, 409),
        ({"flag": "2026-01-01 camera-1", "form": "x"}, 403),
    ],
)
def test_what_is_refused(operator: httpx2.Client, fields: dict[str, str], status: int) -> None:
    form = form_of(operator.get("/dashboard"))
    refused = operator.post(REVIEW, data={"form": form} | fields)
    assert refused.status_code == status
    assert_strict(refused)
