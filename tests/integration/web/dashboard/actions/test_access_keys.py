"""Create, rotate and revoke access keys in the dashboard. A secret is shown once."""

import re
from itertools import count

import httpx2
import pytest

from tests.integration.web.dashboard.actions.conftest import confirmation, list_acts
from tests.integration.web.dashboard.conftest import Guarded, form_of, sign_in
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.access_keys import bearer, create_known_key, issue, secret_of
from tests.support.programs.running import wait_until

CREATE = "/dashboard/keys/create"
ROTATE = "/dashboard/keys/rotate"
REVOKE = "/dashboard/keys/revoke"
CALLERS = "/dashboard/callers"

names = (f"caller {number}" for number in count())


@pytest.fixture
def key_id(guarded: Guarded) -> str:
    """A key of scope validate."""
    return issue(guarded.database, next(names), "validate").key.key_id


def secret_in(page: httpx2.Response) -> str:
    """The one secret that a page shows."""
    assert page.status_code == 200, page.text
    assert_strict(page)
    [secret] = re.findall(r"sma_[a-z2-7]+_[a-z2-7]{52}", page.text)
    return str(secret)


def is_known(guarded: Guarded, secret: str) -> bool:
    with guarded.running.client(headers=bearer(secret)) as client:
        return client.get("/openapi.json").status_code == 200


def test_a_key_is_created_and_its_secret_shown_once(
    guarded: Guarded, operator: httpx2.Client
) -> None:
    """Not in a URL, in a page that comes later, or in the trail; a form sent twice makes no two."""
    name = f"<b>{next(names)}</b>"
    form = operator.get(CREATE)
    assert_strict(form)
    fields = confirmation(form) | {"name": [name], "scope": ["provision"], "uses": ["5"]}
    fields |= {"family": ["Pi"], "may_re_enrol": ["yes"], "rate": ["7/second"]}
    page = operator.post(CREATE, data=fields | {"expires": ["2999-01-02T03:04"]})
    secret = secret_in(page)
    assert page.headers["cache-control"] == "no-store"
    assert name not in page.text
    wait_until(lambda: is_known(guarded, secret), 10)
    key_id = secret.split("_")[1]
    [act] = list_acts(guarded, key_id)
    assert (act.act, act.source, act.actor) == ("access-key.create", "dashboard", "a admin")
    assert act.after is not None
    assert act.after["uses_allowed"] == 5
    assert act.after["may_re_enrol"] is True
    assert f"/dashboard/act?id={act.id}" in page.text
    again = operator.post(CREATE, data=fields)
    assert again.status_code == 422
    assert "There is already a key" in again.text
    for path in (CALLERS, f"/dashboard/act?id={act.id}", "/dashboard/acts.jsonl"):
        assert secret[-52:] not in operator.get(path).text
    assert secret[-52:] not in guarded.running.server.said()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"scope": ""}, "Choose the scope"),
        ({"scope": "validate", "uses": "3"}, "Only a key of scope provision"),
        ({"scope": "provision", "disclosure": "none"}, "Only a key of scope validate"),
        ({"scope": "provision", "uses": "0"}, "at least one device"),
        ({"scope": "validate", "expires": "2020-01-01"}, "must be in the future"),
        ({"scope": "validate", "rate": "many"}, "cannot be used"),
        ({"scope": "validate", "name": ""}, "1 to 64 printable"),
        ({"scope": "validate", "name": "x" * 65}, "1 to 64 printable"),
        ({"scope": "validate", "name": "x" * 200}, "at most 128"),
        ({"scope": "root"}, "scope is one of"),
    ],
)
def test_terms_that_cannot_be(
    guarded: Guarded, operator: httpx2.Client, more: dict[str, str], told: str
) -> None:
    """What was typed stays in the form."""
    before = guarded.running.count("access_keys")
    fields = {"form": form_of(operator.get(CREATE)), "name": next(names)} | more
    refused = operator.post(CREATE, data=fields)
    assert refused.status_code == 422
    assert told in refused.text
    assert guarded.running.count("access_keys") == before


def test_a_key_is_rotated_once(guarded: Guarded, operator: httpx2.Client, key_id: str) -> None:
    """The form that is sent again does nothing, so the grace of the first secret stays."""
    fields = confirmation(operator.get(ROTATE, params={"key": key_id})) | {"grace": ["7 days"]}
    secret = secret_in(operator.post(ROTATE, data=fields))
    wait_until(lambda: is_known(guarded, secret), 10)
    again = operator.post(ROTATE, data=fields)
    assert again.status_code == 409
    assert "changed since this page was made" in again.text
    assert "sma_" not in again.text
    assert [each.act for each in list_acts(guarded, key_id)] == [
        *("access-key.rotate", "access-key.create"),
    ]
    assert "accepted until" in operator.get(ROTATE, params={"key": key_id}).text


def test_a_key_is_revoked(guarded: Guarded, operator: httpx2.Client, key_id: str) -> None:
    fields = confirmation(operator.get(REVOKE, params={"key": key_id}))
    done = operator.post(REVOKE, data=fields)
    assert done.status_code == 303
    assert list_acts(guarded, key_id)[0].act == "access-key.revoke"
    shown = operator.get(done.headers["location"])
    assert "recorded as act" in shown.text
    assert "Undo" not in shown.text
    again = operator.post(REVOKE, data=fields)
    assert again.headers["location"] == done.headers["location"]
    assert operator.get(REVOKE, params={"key": key_id}).status_code == 404
    assert operator.post(ROTATE, data=fields).status_code == 404


def test_the_page_warns_of_the_own_key(guarded: Guarded, operator: httpx2.Client) -> None:
    """Who revokes it is signed out."""
    page = operator.get(REVOKE, params={"key": guarded.keys["admin"].split("_")[1]})
    assert "you will be signed out" in page.text
    secret = create_known_key(guarded.running, next(names), "--scope", "admin")
    with guarded.browser(secret) as browser:
        page = browser.get(REVOKE, params={"key": secret.split("_")[1]})
        assert browser.post(REVOKE, data=confirmation(page)).status_code == 303
        wait_until(lambda: browser.get(CALLERS).status_code == 303, 10)
        assert sign_in(browser, secret).status_code == 401


@pytest.mark.parametrize("path", [CREATE, ROTATE, REVOKE])
def test_a_foreign_form_changes_no_key(
    guarded: Guarded, operator: httpx2.Client, key_id: str, path: str
) -> None:
    """Cross-site request forgery."""
    seen = confirmation(operator.get(ROTATE, params={"key": key_id}))
    fields = seen | {"name": ["x"], "scope": ["admin"], "form": ["0" * 64]}
    assert operator.post(path, data=fields).status_code == 403
    assert len(list_acts(guarded, key_id)) == 1


def test_secrets_are_not_taken_from_the_trail(guarded: Guarded) -> None:
    """The digest that a page holds to notice changes is not that of the secret."""
    issued = issue(guarded.database, next(names), "validate")
    with guarded.browser(guarded.keys["admin"]) as browser:
        page = browser.get(ROTATE, params={"key": issued.key.key_id})
    assert issued.key.secret_digest is not None
    assert issued.key.secret_digest.hex() not in page.text
    assert secret_of(issued)[-52:] not in page.text
