"""Every action of the dashboard: it leaves one act, needs a role, and needs a key everywhere."""

import re

import httpx2
import pytest

from birthmark_sma.authority.acts import search
from birthmark_sma.authority.acts.search import ActFilter
from tests.integration.web.dashboard.actions.conftest import (
    confirmation,
    list_acts,
    provision,
    status_of,
)
from tests.integration.web.dashboard.actions.test_flags import flag
from tests.integration.web.dashboard.conftest import PAGE, SIGN_IN, Guarded, form_of, sign_in
from tests.integration.web.test_acts_of_routes import LEAVES_ACT_BY_FORM, count_acts
from tests.support.access_keys import bearer, issue, secret_of
from tests.support.cameras.camera import Camera
from tests.support.programs.running import Running, new_serial, wait_until

PAGES_OF_ROLES = {
    "read": set[str](),
    "operate": {path for path in LEAVES_ACT_BY_FORM if "/keys/" not in path},
    "admin": set(LEAVES_ACT_BY_FORM),
}


def test_every_action_leaves_one_act(guarded: Guarded, operator: httpx2.Client) -> None:
    """In the name of the key that signed in."""
    provision(guarded, "camera", "camera-2")
    flag(guarded, "camera")
    key_id = issue(guarded.database, "caller", "validate").key.key_id
    for path, query in LEAVES_ACT_BY_FORM.items():
        asked = {name: key_id if each == "KEY" else each for name, each in query.items()}
        before = count_acts(guarded.database)
        fields = {**asked, **confirmation(operator.get(path, params=asked))}
        assert count_acts(guarded.database) == before, path
        done = operator.post(path, data=fields)
        assert done.status_code in {200, 303}, done.text
        with guarded.database.read() as connection:
            [act] = search.search(connection, ActFilter(), limit=1)
        assert count_acts(guarded.database) == before + 1, path
        assert (act.actor, act.role, act.source) == ("a admin", "admin", "dashboard"), path
        assert act.request_id == done.headers["x-request-id"]


@pytest.mark.parametrize("role", PAGES_OF_ROLES)
def test_a_role_sees_its_actions_and_no_others(guarded: Guarded, role: str) -> None:
    """The pages link to none that the route would refuse."""
    [serial] = provision(guarded, new_serial())
    flag(guarded, serial)
    before = count_acts(guarded.database)
    with guarded.browser(guarded.keys[role]) as browser:
        seen = set[str]()
        pages = (f"device?serial={serial}", f"devices?q={serial}", "flags", "callers")
        for path in pages:
            text = browser.get(f"/dashboard/{path}").text
            seen |= set(re.findall(r'(?:href|action)="([^"?]+)', text)) & LEAVES_ACT_BY_FORM.keys()
        assert seen == PAGES_OF_ROLES[role]
        form = form_of(browser.get("/dashboard"))
        for path, query in LEAVES_ACT_BY_FORM.items():
            for answer in (
                browser.get(path, params=query),
                browser.post(path, data=query | {"form": form, "confirmed": "yes"}),
            ):
                is_refused = answer.status_code == 403
                assert is_refused == (path not in PAGES_OF_ROLES[role]), (path, answer.status_code)
                if is_refused:
                    assert f"This access key has the scope {role}" in answer.text
        if role == "read":
            assert "checkbox" not in browser.get(f"/dashboard/devices?q={serial}").text
            assert count_acts(guarded.database) == before


def test_a_key_in_a_header_shows_and_changes_nothing(guarded: Guarded) -> None:
    """Forms are bound to a session. Programs have the command line."""
    [serial] = provision(guarded, new_serial())
    headers = PAGE | bearer(guarded.keys["admin"])
    query = {"act": "suspend", "serial": serial}
    with guarded.running.client(headers=headers) as program:
        page = program.get("/dashboard/devices/act", params=query)
        assert "sign in" in page.text
        fields = confirmation(page)
        assert fields["form"] == [""]
        assert program.post("/dashboard/devices/act", data=fields).status_code == 403
    assert status_of(guarded, serial) == "active"


def test_an_open_server_asks_for_a_key(running: Running) -> None:
    """Whoever reaches it may look. An act needs a name, so the links lead to the sign-in page."""
    with running.client() as client:
        serial = Camera.provisioned(client, new_serial()).serial
    place = f"/dashboard/devices/act?act=suspend&serial={serial}"
    with running.client(headers=PAGE) as browser, running.database() as database:
        assert "act=suspend" in browser.get(f"/dashboard/device?serial={serial}").text
        assert "checkbox" not in browser.get(f"/dashboard/devices?q={serial}").text
        asked = browser.get(place)
        assert asked.status_code == 303
        form = browser.get(asked.headers["location"])
        assert form.status_code == 200
        assert 'name="key"' in form.text
        posted = browser.post("/dashboard/devices/act", data={"act": "suspend", "serial": serial})
        assert (posted.status_code, posted.headers["location"]) == (303, SIGN_IN)
        key = secret_of(issue(database, new_serial("operator"), "operate"))
        with running.client(headers=bearer(key)) as client:
            wait_until(lambda: client.get("/health").status_code == 200, 10)
        signed_in = sign_in(browser, key, place)
        assert signed_in.headers["location"] == place
        done = browser.post("/dashboard/devices/act", data=confirmation(browser.get(place)))
        assert done.status_code == 303
        with database.read() as connection:
            [act] = search.search(connection, ActFilter(subject=serial), limit=1)
        assert (act.act, act.role) == ("device.suspend", "operate")


def test_exports_are_reachable(guarded: Guarded, operator: httpx2.Client) -> None:
    """From the pages of validations and acts, for the filter that is shown."""
    [serial] = provision(guarded, new_serial())
    flag(guarded, serial)
    fields = confirmation(operator.get("/dashboard/flags/review", params={"serial": serial}))
    operator.post("/dashboard/flags/review", data=fields)
    # With and without serials.
    for page, number in ((f"/dashboard/acts?subject={serial}", 2), ("/dashboard/validations", 3)):
        links = re.findall(r'<a href="([^"]+)" download>', operator.get(page).text)
        assert len(links) == number
        for link in links:
            export = operator.get(link.replace("&amp;", "&"))
            assert export.headers["content-disposition"].startswith("attachment")
    [act] = list_acts(guarded, serial)
    exported = operator.get(f"/dashboard/acts.jsonl?subject={serial}").json()
    assert exported["id"] == act.id
