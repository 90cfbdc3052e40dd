"""Suspend, reinstate, revoke and retire devices in the dashboard: one, chosen ones, and by filter."""

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import httpx2
import pytest

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.search import ActFilter, RecordedAct
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import change_device
from tests.integration.web.dashboard.conftest import Guarded
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.access_keys import bearer
from tests.support.cameras.camera import Camera
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import revoke_device, suspend_device
from tests.support.programs.running import new_serial

ACT = "/dashboard/devices/act"
FIELD = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')


@pytest.fixture
def operator(guarded: Guarded) -> Iterator[httpx2.Client]:
    """A browser that is signed in."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        yield browser


def provision(guarded: Guarded, *serials: str, family: str = "Pi") -> tuple[str, ...]:
    """Provision devices with these serials."""
    with guarded.running.client(headers=bearer(guarded.keys["provision"])) as client:
        for serial in serials:
            Camera.provisioned(client, serial, device_family=family)
    return serials


def confirmation(page: httpx2.Response) -> dict[str, Any]:
    """The hidden fields of the form in which a page asks for confirmation."""
    assert_strict(page)
    form = page.text[page.text.index('class="confirm"') :]
    fields: dict[str, list[str]] = {}
    for name, value in FIELD.findall(form):
        fields.setdefault(name, []).append(unescape(value))
    return dict(fields)


def acts_on(guarded: Guarded, serial: str) -> list[RecordedAct]:
    """The acts on a device, newest first, without its provisioning."""
    with guarded.database.read() as connection:
        return act_search.search(connection, ActFilter(subject=serial), limit=20)


def status_of(guarded: Guarded, serial: str) -> str:
    statement = "SELECT status FROM registered_devices WHERE device_serial = ?"
    [(status,)] = guarded.running.rows(statement, serial)
    return str(status)


@pytest.mark.parametrize(
    ("act", "status", "more", "undo"),
    [
        ("suspend", "suspended", {}, "Undo: reinstate"),
        ("retire", "retired", {}, None),
        ("revoke", "revoked", {"reason": "key_compromise", "since": "2026-01-02T03:04"}, None),
    ],
)
def test_an_act_on_one_device(
    guarded: Guarded,
    operator: httpx2.Client,
    act: str,
    status: str,
    more: dict[str, str],
    undo: str | None,
) -> None:
    """The page tells what would change, the act is done once, and is shown afterwards."""
    [serial] = provision(guarded, new_serial())
    device = operator.get("/dashboard/device", params={"serial": serial})
    assert (
        f"{ACT}?act={act}&amp;serial={serial}" in device.text
        or f"{ACT}?act={act}&serial={serial}" in unescape(device.text)
    )
    preview = operator.get(ACT, params={"act": act, "serial": serial})
    assert preview.status_code == 200
    fields = confirmation(preview) | more
    assert status_of(guarded, serial) == "active"
    assert acts_on(guarded, serial) == []
    done = operator.post(ACT, data=fields)
    assert done.status_code == 303, done.text
    assert status_of(guarded, serial) == status
    [recorded] = acts_on(guarded, serial)
    assert (recorded.act, recorded.source, recorded.actor) == (
        f"device.{act}",
        "dashboard",
        "a admin",
    )
    assert (recorded.role, recorded.request_id) == ("admin", done.headers["x-request-id"])
    shown = operator.get(done.headers["location"])
    assert_strict(shown)
    assert f"recorded as act {recorded.id}" in shown.text
    assert (undo is None and "Undo:" not in shown.text) or (undo is not None and undo in shown.text)
    again = operator.post(ACT, data=fields)
    assert (again.status_code, again.headers["location"]) == (303, done.headers["location"])
    assert len(acts_on(guarded, serial)) == 1, "a form that is sent twice acts once"
