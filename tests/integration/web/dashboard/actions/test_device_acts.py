"""Suspend, reinstate, revoke and retire devices: one, chosen ones, and all that match a filter."""

import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape

import httpx2
import pytest

from tests.integration.web.dashboard.actions.conftest import (
    confirmation,
    list_acts,
    provision,
    status_of,
)
from tests.integration.web.dashboard.conftest import Guarded, form_of
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device
from tests.support.programs.running import new_serial

ACT = "/dashboard/devices/act"
LIST = "/dashboard/devices"
COMPROMISE = {"reason": ["key_compromise"], "since": ["2026-01-02T03:04"]}
HOSTILE = '"><script>alert(1)</script>&amp;'


@pytest.mark.parametrize(
    ("act", "status", "undo"),
    [
        ("suspend", "suspended", ["Undo: reinstate"]),
        ("retire", "retired", []),
        ("revoke", "revoked", []),
    ],
)
def test_an_act_on_one_device(
    guarded: Guarded,
    operator: httpx2.Client,
    act: str,
    status: str,
    undo: list[str],
) -> None:
    """The page tells what would change. The act is done once, recorded, and shown afterwards."""
    [serial] = provision(guarded, HOSTILE + new_serial(""))
    device = operator.get("/dashboard/device", params={"serial": serial})
    links = map(unescape, re.findall(rf'href="({ACT}[^"]+)"', device.text))
    preview = operator.get(next(each for each in links if f"act={act}&" in each))
    assert preview.status_code == 200
    fields = confirmation(preview) | (COMPROMISE if act == "revoke" else {})
    assert status_of(guarded, serial) == "active"
    assert list_acts(guarded, serial) == []
    done = operator.post(ACT, data=fields)
    assert done.status_code == 303, done.text
    assert status_of(guarded, serial) == status
    [recorded] = list_acts(guarded, serial)
    assert recorded.act == f"device.{act}"
    assert (recorded.source, recorded.actor, recorded.role) == ("dashboard", "a admin", "admin")
    assert recorded.request_id == done.headers["x-request-id"]
    shown = operator.get(done.headers["location"])
    assert_strict(shown)
    assert f"recorded as act {recorded.id}" in shown.text
    assert re.findall(r"Undo: \w+", shown.text) == undo
    again = operator.post(ACT, data=fields)
    assert (again.status_code, again.headers["location"]) == (303, done.headers["location"])
    assert len(list_acts(guarded, serial)) == 1


def test_a_suspension_is_undone(guarded: Guarded, operator: httpx2.Client) -> None:
    """And the form of the suspension, sent once more after that, does nothing."""
    [serial] = provision(guarded, new_serial())
    fields = confirmation(operator.get(ACT, params={"act": "suspend", "serial": serial}))
    act = operator.get(operator.post(ACT, data=fields).headers["location"])
    [link] = re.findall(rf'href="({ACT}[^"]+)"', act.text)
    done = operator.post(ACT, data=confirmation(operator.get(unescape(link))))
    assert done.status_code == 303
    assert status_of(guarded, serial) == "active"
    stale = operator.post(ACT, data=fields)
    assert stale.status_code == 409
    assert "changed since this page was made" in stale.text
    assert status_of(guarded, serial) == "active"
    assert confirmation(operator.get(unescape(link))) == {}, "nothing is left to confirm"


def test_chosen_devices(guarded: Guarded, operator: httpx2.Client) -> None:
    """Devices that cannot change are left out, and said to be. The act has several subjects."""
    family = new_serial("family")
    serials = provision(guarded, *(f"{family}-{n}" for n in range(4)), family=family)
    suspend_device(guarded.database, serials[2])
    revoke_device(guarded.database, serials[3], "superseded")
    page = operator.get(LIST, params={"family": family})
    assert page.text.count('type="checkbox"') == 4
    chosen = {"form": form_of(page), "family": family, "act": "suspend", "which": "chosen"}
    preview = operator.post(ACT, data=chosen | {"serial": serials})
    assert preview.status_code == 200
    assert "Suspend 2 devices" in preview.text
    assert "Left out: 1 suspended already, 1 revoked." in preview.text
    done = operator.post(ACT, data=confirmation(preview))
    assert done.status_code == 303
    assert [status_of(guarded, each) for each in serials] == [*["suspended"] * 3, "revoked"]
    [act] = list_acts(guarded, serials[0])
    assert (act.subjects, act.more) == (2, {})
    [link] = re.findall(rf'href="({ACT}[^"]+)"', operator.get(done.headers["location"]).text)
    undo = operator.get(unescape(link))
    assert "Reinstate 2 devices" in undo.text
    assert operator.post(ACT, data=confirmation(undo)).status_code == 303
    assert [status_of(guarded, each) for each in serials[:3]] == ["active", "active", "suspended"]


def test_all_that_match_a_filter(guarded: Guarded, operator: httpx2.Client) -> None:
    """If the set changes between preview and act, nothing is done and the page says so."""
    family = new_serial("family")
    serials = provision(guarded, *(f"{family}-{n}" for n in range(3)), family=family)
    fields = {"form": form_of(operator.get(LIST)), "family": family, "status": "active"}
    fields |= {"act": "retire", "which": "all"}
    preview = operator.post(ACT, data=fields)
    assert "Retire 3 devices" in preview.text
    assert all(each in preview.text for each in serials)
    confirmed = confirmation(preview) | {"number": ["3"]}
    serials += provision(guarded, f"{family}-4", family=family)
    changed = operator.post(ACT, data=confirmed)
    assert changed.status_code == 409
    assert "changed since this page was made" in changed.text
    assert "Retire 4 devices" in changed.text
    confirmed = confirmation(changed)
    for number in ("", "3", "four"):
        untyped = operator.post(ACT, data=confirmed | {"number": [number]})
        assert untyped.status_code == 422
        assert "Type 4" in untyped.text
    assert {status_of(guarded, each) for each in serials} == {"active"}
    assert operator.post(ACT, data=confirmed | {"number": ["4"]}).status_code == 303
    assert {status_of(guarded, each) for each in serials} == {"retired"}
    [act] = list_acts(guarded, serials[3])
    assert act.more == {"criteria": {"family": family, "status": "active"}}
    nobody = operator.post(ACT, data=fields)
    assert "no device is selected" in nobody.text
    assert 'type="submit" class="danger"' not in nobody.text


def test_a_form_is_sent_many_times_at_once(guarded: Guarded, operator: httpx2.Client) -> None:
    """One act, and each response shows it: a browser shows the last one to a double click."""
    [serial] = provision(guarded, new_serial())
    fields = confirmation(operator.get(ACT, params={"act": "suspend", "serial": serial}))
    cookies = dict(operator.cookies)

    def send(_: int) -> int:
        with guarded.running.client(headers={"Accept": "text/html"}, cookies=cookies) as browser:
            return browser.post(ACT, data=fields).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(send, range(8))) == {303}
    assert [each.act for each in list_acts(guarded, serial)] == ["device.suspend"]


def test_a_revoked_device_gets_a_stronger_reason(guarded: Guarded, operator: httpx2.Client) -> None:
    [serial] = provision(guarded, new_serial())
    revoke_device(guarded.database, serial, "key_compromise")
    preview = operator.get(ACT, params={"act": "revoke", "serial": serial})
    weaker = operator.post(ACT, data=confirmation(preview) | {"reason": ["superseded"]})
    assert weaker.status_code == 409
    assert "for a reason as strong as this" in weaker.text
    assert operator.post(ACT, data=confirmation(preview) | COMPROMISE).status_code == 303
    assert len(list_acts(guarded, serial)) == 2


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"reason": []}, 422, "Choose a reason"),
        ({"reason": ["because"]}, 422, "reason is one of"),
        ({"reason": ["superseded"], "since": ["2026-01-02T03:04"]}, 422, "Only a key can be"),
        ({"reason": ["key_compromise"], "since": ["2999-01-01"]}, 422, "in the future"),
        ({"reason": ["superseded"], "since": ["soon"]}, 422, "since is a time"),
        ({"reason": ["superseded"], "form": ["0" * 64]}, 403, "does not come from the dashboard"),
        ({"reason": ["superseded"], "form": []}, 403, "does not come from the dashboard"),
        ({"reason": ["superseded"], "seen": ["x"]}, 409, "changed since this page was made"),
        ({"reason": ["superseded"], "act": ["delete"]}, 422, "act is one of"),
        ({"reason": ["superseded"], "serial": []}, 422, "Choose at least one device"),
        ({"reason": ["superseded"], "serial": ["nobody"]}, 404, "No device nobody"),
        ({"reason": ["superseded"], "serial": ["a\0b"]}, 422, "printable"),
        ({"reason": ["superseded"], "serial": [], "which": ["all"]}, 422, "Search for the devices"),
        ({"reason": ["superseded"], "serial": [], "of": ["999999"]}, 404, "no act 999999"),
        ({"reason": ["superseded"], "x": ["x" * 70_000]}, 413, "at most 65536 bytes"),
        (
            {"reason": ["superseded"], "serial": ["a"] * 200},
            403,
            "does not come from the dashboard",
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    guarded: Guarded, operator: httpx2.Client, more: dict[str, list[str]], status: int, told: str
) -> None:
    [serial] = provision(guarded, new_serial())
    preview = operator.get(ACT, params={"act": "revoke", "serial": serial})
    refused = operator.post(ACT, data=confirmation(preview) | more)
    assert refused.status_code == status, refused.text
    assert_strict(refused)
    assert told in unescape(refused.text)
    assert status_of(guarded, serial) == "active"
    assert list_acts(guarded, serial) == []


def test_get_changes_nothing(guarded: Guarded, operator: httpx2.Client) -> None:
    """Not even with all fields of a confirmed form. Nor does a form without `confirmed`."""
    [serial] = provision(guarded, new_serial())
    fields = confirmation(operator.get(ACT, params={"act": "suspend", "serial": serial}))
    assert operator.get(ACT, params=fields).status_code == 200
    assert operator.post(ACT, data=fields | {"confirmed": []}).status_code == 200
    assert status_of(guarded, serial) == "active"


def test_a_reinstated_device_had_its_flags_looked_at(
    guarded: Guarded, operator: httpx2.Client
) -> None:
    """The page of each status offers the acts that it allows."""
    [serial] = provision(guarded, new_serial())

    def offered() -> set[str]:
        page = operator.get("/dashboard/device", params={"serial": serial}).text
        return set(re.findall(r"[?&;]act=(\w+)", page.partition('aria-labelledby="device"')[0]))

    assert offered() == {"suspend", "revoke", "retire"}
    suspend_device(guarded.database, serial)
    assert offered() == {"reinstate", "revoke", "retire"}
    reinstate_device(guarded.database, serial)
    revoke_device(guarded.database, serial, "superseded")
    assert offered() == {"revoke"}
