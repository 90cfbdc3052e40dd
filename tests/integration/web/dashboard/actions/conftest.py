"""Browsers that are signed in, and the forms in which pages ask for confirmation."""

import re
from collections.abc import Iterator
from html import unescape

import httpx2
import pytest

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.search import ActFilter, RecordedAct
from tests.integration.web.dashboard.conftest import Guarded
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.access_keys import bearer
from tests.support.cameras.camera import Camera

FORM_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}
_HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')


@pytest.fixture
def operator(guarded: Guarded) -> Iterator[httpx2.Client]:
    """A browser that is signed in with the key of an administrator."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        yield browser


def provision(guarded: Guarded, *serials: str, family: str = "Pi") -> list[str]:
    """Provision devices with these serials, and return them."""
    with guarded.running.client(headers=bearer(guarded.keys["provision"])) as client:
        for serial in serials:
            Camera.provisioned(client, serial, device_family=family)
    return list(serials)


def confirmation(page: httpx2.Response) -> dict[str, list[str]]:
    """Return the hidden fields of the form in which a page asks for confirmation."""
    assert_strict(page)
    form = page.text[page.text.index('class="confirm"') :]
    fields: dict[str, list[str]] = {}
    for name, value in _HIDDEN.findall(form):
        fields.setdefault(name, []).append(unescape(value))
    return fields


def list_acts(guarded: Guarded, subject: str) -> list[RecordedAct]:
    """Return the acts on a device or key, newest first."""
    with guarded.database.read() as connection:
        return act_search.search(connection, ActFilter(subject=subject), limit=20)


def status_of(guarded: Guarded, serial: str) -> str:
    """Return the status of a device."""
    statement = "SELECT status FROM registered_devices WHERE device_serial = ?"
    [(status,)] = guarded.running.rows(statement, serial)
    return str(status)
