"""Who is let in to the dashboard, for how long, and what a page of another site can do."""

import re
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pytest

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.access.keys import revoke_key, rotate_key
from birthmark_sma.authority.access.sessions import IDLE, LONGEST, find_session
from birthmark_sma.authority.access.sessions import sign_in as sign_in_at
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.engine import Database
from tests.integration.web.dashboard.conftest import (
    PAGE,
    SIGN_IN,
    Guarded,
    form_of,
    sign_in,
)
from tests.support.access_keys import bearer, issue, secret_of, start_with_keys
from tests.support.authorities import execute
from tests.support.cameras.camera import PROVISION
from tests.support.devices.actors import ACTOR
from tests.support.programs.running import start, wait_until

names = (f"operator {number}" for number in count())


def fresh_key(guarded: Guarded, scope: str = "admin") -> str:
    """A key that the server knows of already."""
    key = secret_of(issue(guarded.database, next(names), scope))
    with guarded.running.client(headers=bearer(key)) as client:
        wait_until(lambda: client.get("/health").status_code == 200, 5)
    return key


# --- the way in


def test_a_browser_without_a_session_is_asked_for_a_key(guarded: Guarded) -> None:
    with guarded.browser() as browser:
        assert browser.get("/").headers["location"] == "/dashboard"
        answer = browser.get("/dashboard?range=24h")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"{SIGN_IN}?next=%2Fdashboard%3Frange%3D24h"
        form = browser.get(answer.headers["location"])
        assert form.status_code == 200
        assert 'value="/dashboard?range=24h"' in form.text
    with guarded.running.client() as program:
        assert program.get("/").headers["location"] == "/docs"
        assert program.get("/dashboard").status_code == 401
        assert program.get("/dashboard").headers["content-type"] == "application/problem+json"


def test_an_admin_key_opens_it(guarded: Guarded) -> None:
    with guarded.browser() as browser:
        answer = sign_in(browser, guarded.keys["admin"], "/dashboard?range=24h")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/dashboard?range=24h"
        (cookie,) = [
            each for each in answer.headers.get_list("set-cookie") if "sma-session" in each
        ]
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert parts == {"httponly", "path=/", "samesite=strict"}, "and no Secure without TLS"
        assert guarded.keys["admin"] not in cookie
        page = browser.get("/dashboard?range=24h")
        assert page.status_code == 200
        assert "a admin" in page.text


def test_over_tls_the_cookie_is_bound_to_tls(tmp_path: Path) -> None:
    """RFC 6265bis, section 4.1.3.2: the prefix keeps other hosts and plain HTTP from setting it."""
    running, keys = start_with_keys(
        tmp_path / "data", "sqlite:", "--trusted-proxies", "127.0.0.1/32"
    )
    forwarded = {**PAGE, "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    try:
        with running.client(headers=forwarded) as browser:
            page = browser.get(SIGN_IN)
            (before,) = page.headers.get_list("set-cookie")
            cookie = before.partition(";")[0]
            answer = browser.post(
                SIGN_IN,
                data={"form": form_of(page), "key": keys["admin"]},
                headers={"Cookie": cookie},
            )
            (session,) = [
                each
                for each in answer.headers.get_list("set-cookie")
                if each.startswith("__Host-sma-session=")
            ]
            assert {"Secure", "HttpOnly", "Path=/"} <= {p.strip() for p in session.split(";")}
            shown = {"Cookie": session.partition(";")[0]}
            assert browser.get("/dashboard", headers=shown).status_code == 200
            plain = {"Cookie": shown["Cookie"].removeprefix("__Host-")}
            assert browser.get("/dashboard", headers=plain).status_code == 303
    finally:
        running.server.close()


@pytest.mark.parametrize("scope", ["read", "operate"])
def test_lower_roles_open_the_dashboard_too(guarded: Guarded, scope: str) -> None:
    with guarded.browser() as browser:
        assert sign_in(browser, guarded.keys[scope]).status_code == 303
        assert browser.get("/dashboard").status_code == 200
        assert browser.get("/dashboard/validations.csv").status_code == 200


@pytest.mark.parametrize("scope", ["validate", "provision", "monitor"])
def test_other_keys_do_not(guarded: Guarded, scope: str) -> None:
    """The page says why, and which role is needed."""
    with guarded.browser() as browser:
        answer = sign_in(browser, guarded.keys[scope])
        assert answer.status_code == 403
        assert f"has the scope {scope}" in answer.text
        assert "needs a key of scope read, operate or admin" in answer.text
        assert browser.get("/dashboard").status_code == 303


def test_a_wrong_key_does_not(guarded: Guarded) -> None:
    wrong = guarded.keys["admin"][:-1] + ("a" if guarded.keys["admin"][-1] != "a" else "b")
    with guarded.browser() as browser:
        for key in (wrong, "", "sma_nothing", "é" * 67, "'; DROP TABLE access_keys; --"):
            answer = sign_in(browser, key)
            assert answer.status_code == 401
            assert "not known here" in answer.text
            assert not key or key not in answer.text, "what was typed is not sent back"


def test_guesses_are_limited(tmp_path: Path) -> None:
    """Threat 22: as they are in a header."""
    running, keys = start_with_keys(
        tmp_path / "data", "sqlite:", "--rate-guesses", "3/hour", SMA_TABLES="50"
    )
    try:
        with running.client(headers=PAGE) as browser:
            answers = [sign_in(browser, "sma_wrong").status_code for _ in range(5)]
            assert answers == [401, 401, 401, 429, 429]
            assert "Retry-After" in sign_in(browser, "sma_wrong").headers
            assert sign_in(browser, keys["admin"]).status_code == 303, "who has a key is let in"
    finally:
        running.server.close()


def test_unknown_sessions_are_guesses(tmp_path: Path) -> None:
    """Threat 22: 3,200 cookies in a second were not counted. One that is over is no guess."""
    running, keys = start_with_keys(
        tmp_path / "data", "sqlite:", "--rate-guesses", "3/hour", SMA_TABLES="50"
    )
    try:
        with running.client("127.0.4.1", headers=PAGE) as browser:
            assert sign_in(browser, keys["admin"]).status_code == 303
            with running.database() as database:
                long_ago = (datetime.now(UTC) - LONGEST - timedelta(days=1)).isoformat(" ")
                execute(database, "UPDATE dashboard_sessions SET opened_at = :at", at=long_ago)
            assert {browser.get("/dashboard").status_code for _ in range(9)} == {303}
        with running.client("127.0.4.1", headers=PAGE) as browser:
            assert sign_in(browser, keys["admin"]).status_code == 303, "which forgets none of them"
            assert browser.get("/dashboard").status_code == 200
        with running.client("127.0.4.1", headers=PAGE) as guesser:
            answers = [
                guesser.get("/dashboard", headers={"Cookie": f"sma-session={number:043}"})
                for number in range(6)
            ]
            assert [each.status_code for each in answers] == [303] * 3 + [429] * 3
            assert int(answers[-1].headers["Retry-After"]) > 3_000
            short = guesser.get("/dashboard/figures", headers={"Cookie": "sma-session=short"})
            assert short.status_code == 429
    finally:
        running.server.close()


@pytest.mark.parametrize(
    "place",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/dashboard@evil.example",
        "/dashboardx",
        "/dashboard/../docs",
        "/docs/../stats",
        "/docs?next=//evil.example",
        "/stats",
        "javascript:alert(1)",
        "/dashboard\r\nSet-Cookie: a=b",
        "/dashboard/sign-out",
        "",
    ],
)
def test_nobody_is_led_elsewhere(guarded: Guarded, place: str) -> None:
    with guarded.browser() as browser:
        answer = sign_in(browser, guarded.keys["admin"], place)
        assert answer.headers["location"] == "/dashboard"


@pytest.mark.parametrize("place", ["/docs", "/redoc"])
def test_the_documentation_opens_with_a_session(guarded: Guarded, place: str) -> None:
    """A browser without one signs in first, and a program gets 401, as before."""
    with guarded.running.client() as program:
        assert program.get(place).status_code == 401
    with guarded.browser() as browser:
        asked = browser.get(place)
        assert asked.status_code == 303
        assert asked.headers["location"] == f"{SIGN_IN}?next=%2F{place[1:]}"
        assert browser.get("/openapi.json", headers={"Accept": "*/*"}).status_code == 401
        answer = sign_in(browser, guarded.keys["admin"], place)
        assert answer.headers["location"] == place
        page = browser.get(place)
        assert page.status_code == 200
        assert browser.get("/openapi.json", headers={"Accept": "*/*"}).json()["openapi"]
        for source in re.findall(r'(?:src|href)="(/static-offline-docs/[^"]+)"', page.text):
            assert browser.get(source).status_code == 200


# --- how long it lasts


def test_signing_out_ends_a_session_for_good(guarded: Guarded) -> None:
    with guarded.browser(guarded.keys["admin"]) as browser:
        page = browser.get("/dashboard")
        cookies = dict(browser.cookies)
        answer = browser.post("/dashboard/sign-out", data={"form": form_of(page)})
        assert (answer.status_code, answer.headers["location"]) == (303, SIGN_IN)
        assert "sma-session" not in browser.cookies
    with guarded.running.client(headers=PAGE, cookies=cookies) as thief:
        assert thief.get("/dashboard").status_code == 303, "a copy of the cookie is worth nothing"


def test_a_revoked_key_ends_its_sessions_within_a_second(guarded: Guarded) -> None:
    """Threat 22, for browsers."""
    key = fresh_key(guarded)
    with guarded.browser(key) as browser, guarded.browser(guarded.keys["admin"]) as other:
        assert browser.get("/dashboard").status_code == 200
        revoke_key(guarded.database, key.split("_")[1], actor=ACTOR)
        wait_until(lambda: browser.get("/dashboard").status_code == 303, 2)
        assert other.get("/dashboard").status_code == 200


def test_a_rotated_secret_ends_the_sessions_it_opened(guarded: Guarded) -> None:
    key = fresh_key(guarded)
    with guarded.browser(key) as browser:
        rotated = rotate_key(guarded.database, key.split("_")[1], timedelta(hours=1), actor=ACTOR)
        with guarded.running.client(headers=bearer(secret_of(rotated))) as client:
            wait_until(lambda: client.get("/health").status_code == 200, 5)
        assert browser.get("/dashboard").status_code == 200, "the old secret has its hour"
        rotate_key(guarded.database, key.split("_")[1], timedelta(0), actor=ACTOR)
        wait_until(lambda: browser.get("/dashboard").status_code == 303, 5)


@pytest.mark.parametrize(
    ("column", "age", "lasts"),
    [
        ("opened_at", LONGEST - timedelta(minutes=1), True),
        ("opened_at", LONGEST + timedelta(minutes=1), False),
        ("seen_at", IDLE - timedelta(minutes=1), True),
        ("seen_at", IDLE + timedelta(minutes=1), False),
        ("opened_at", -LONGEST - timedelta(minutes=1), False),
    ],
)
def test_sessions_expire(guarded: Guarded, column: str, age: timedelta, lasts: bool) -> None:
    """After a while, and earlier where nobody uses them; one from the future is none."""
    key = fresh_key(guarded)
    with guarded.browser(key) as browser:
        _set(guarded, key, column, datetime.now(UTC) - age)
        assert browser.get("/dashboard").status_code == (200 if lasts else 303)


def test_a_page_left_open_keeps_no_session_alive(guarded: Guarded) -> None:
    """What the overview asks by itself is no sign of a person."""
    key = fresh_key(guarded)
    with guarded.browser(key) as browser:
        long_ago = datetime.now(UTC) - IDLE + timedelta(minutes=2)
        _set(guarded, key, "seen_at", long_ago)
        assert browser.get("/dashboard/figures", headers={"HX-Request": "true"}).status_code == 200
        assert _seen(guarded, key) == _plain(guarded, long_ago)
        assert browser.get("/dashboard").status_code == 200
        assert _seen(guarded, key) != _plain(guarded, long_ago)


def test_a_session_goes_on_where_nothing_can_be_written(guarded: Guarded) -> None:
    """As on a full disk: reading is what helps then."""
    with guarded.database.read() as connection:
        key_cache = AccessKeyCache(connection)
    token = sign_in_at(guarded.database, key_cache, guarded.keys["admin"])
    earlier = datetime.now(UTC) - timedelta(minutes=10)
    execute(guarded.database, "UPDATE dashboard_sessions SET seen_at = :seen", seen=earlier)
    refused = DatabaseUnavailableError("The database does not answer", "the disk is full")
    with patch.object(Database, "write", side_effect=refused):
        session = find_session(guarded.database, token, by_person=True)
    assert session is not None
    assert abs(session.seen_at - earlier) < timedelta(seconds=1)


def test_signing_in_again_ends_the_session_before(guarded: Guarded) -> None:
    """Each time with a new token, whatever cookie the browser brought: none can be fixed."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        before = browser.cookies["sma-session"]
        assert sign_in(browser, guarded.keys["admin"]).status_code == 303
        assert browser.cookies["sma-session"] != before
        assert browser.get("/dashboard").status_code == 200
    chosen = "A" * 43
    for cookie in (before, chosen):
        with guarded.running.client(headers=PAGE | {"Cookie": f"sma-session={cookie}"}) as other:
            assert other.get("/dashboard").status_code == 303
    with guarded.browser() as browser:
        browser.cookies.set("sma-session", chosen, domain="127.0.0.1", path="/")
        form = form_of(browser.get(SIGN_IN))
        answer = browser.post(SIGN_IN, data={"form": form, "key": guarded.keys["admin"]})
        assert answer.status_code == 303
        assert chosen not in str(answer.headers.get_list("set-cookie"))


def test_a_session_outlives_a_killed_server(tmp_path: Path) -> None:
    """It is in the database; and where its key was revoked meanwhile, it has ended there too."""
    running, keys = start_with_keys(tmp_path / "data", "sqlite:", SMA_TABLES="50")
    cookies = {}
    with running.client(headers=PAGE) as browser:
        sign_in(browser, keys["admin"])
        cookies = dict(browser.cookies)
    running.server.kill()
    running = start(tmp_path / "data", "sqlite:", "--access", "keys")
    try:
        with running.client(headers=PAGE, cookies=cookies) as browser:
            assert browser.get("/dashboard").status_code == 200
        running.server.kill()
        with running.database() as database:
            revoke_key(database, keys["admin"].split("_")[1], actor=ACTOR)
        running = start(tmp_path / "data", "sqlite:", "--access", "keys")
        with running.client(headers=PAGE, cookies=cookies) as browser:
            assert browser.get("/dashboard").status_code == 303
    finally:
        running.server.close()


def test_a_page_left_open_is_led_to_the_form(guarded: Guarded) -> None:
    with guarded.browser() as browser:
        answer = browser.get("/dashboard/figures", headers={"HX-Request": "true"})
        assert (answer.status_code, answer.text) == (401, "")
        assert answer.headers["hx-redirect"] == SIGN_IN


def test_a_session_opens_no_path_of_programs(guarded: Guarded) -> None:
    """A page that forges a request to the API finds no cookie honoured there."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        for path in ("/stats", "/metrics", "/pki/root.crt"):
            assert browser.get(path).status_code == 401
        assert browser.get("/health").json() == {"status": "healthy"}  # what strangers see
        assert browser.post(PROVISION, json={}).status_code == 401


# --- forms


def test_a_foreign_form_signs_nobody_out(guarded: Guarded) -> None:
    """Cross-site request forgery: the page's own token is asked for."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        for form in ({"other": "a"}, {"form": ""}, {"form": "0" * 64}, {"form": "é"}):
            assert browser.post("/dashboard/sign-out", data=form).status_code == 403
        assert browser.get("/dashboard").status_code == 200


def test_a_foreign_form_signs_nobody_in(guarded: Guarded) -> None:
    with guarded.browser() as browser:
        browser.get(SIGN_IN)
        fields = {"form": "a" * 43, "key": guarded.keys["admin"]}
        assert browser.post(SIGN_IN, data=fields).status_code == 403
        browser.cookies.clear()
        assert browser.post(SIGN_IN, data={"key": guarded.keys["admin"]}).status_code == 403
        assert "sma-session" not in browser.cookies


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"form=" + b"a" * 5_000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=%d" % n for n in range(50)), "application/x-www-form-urlencoded", 403),
        (b"{}", "application/json", 415),
        (b"\xff\xfe%zz=%", "application/x-www-form-urlencoded", 403),
    ],
)
def test_malformed_forms(guarded: Guarded, content: bytes, media_type: str, status: int) -> None:
    with guarded.browser() as browser:
        answer = browser.post(SIGN_IN, content=content, headers={"Content-Type": media_type})
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "cookie", ["sma-session=a; sma-session=b", "sma-session=", f"sma-session={'a' * 43}", "=;;,"]
)
def test_malformed_cookies(guarded: Guarded, cookie: str) -> None:
    with guarded.browser() as browser:
        assert browser.get("/dashboard", headers={"Cookie": cookie}).status_code == 303


def _set(guarded: Guarded, key: str, column: str, when: datetime) -> None:
    execute(
        guarded.database,
        f"UPDATE dashboard_sessions SET {column} = :at WHERE key_id = :id",
        at=_plain(guarded, when),
        id=key.split("_")[1],
    )


def _seen(guarded: Guarded, key: str) -> object:
    ((seen,),) = guarded.running.rows(
        "SELECT seen_at FROM dashboard_sessions WHERE key_id = ?", key.split("_")[1]
    )
    return seen


def _plain(guarded: Guarded, when: datetime) -> object:
    return when.isoformat(" ", "microseconds") if guarded.running.uses_sqlite else when
