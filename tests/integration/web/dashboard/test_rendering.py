"""What every page has in common: what a browser may do with it, and what it loads."""

import json
import re
import time
from html import unescape
from pathlib import Path

import httpx2
import pytest

from birthmark_sma.web.dashboard.rendering import GUIDES
from birthmark_sma.web.dashboard.static_files import static_files
from birthmark_sma.web.routes import ROUTES
from tests.integration.web.dashboard.conftest import PAGE, Guarded, sign_in
from tests.support.access_keys import start_with_keys
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.postgres import Postgres
from tests.support.programs.load import validate_all
from tests.support.programs.running import Running, new_serial, start, wait_until

PAGES = (
    "/dashboard",
    "/dashboard?range=24h",
    "/dashboard/devices",
    "/dashboard/validations",
    "/dashboard/tables",
    "/dashboard/tables?by=use&table=1",
    "/dashboard/certificates",
    "/dashboard/callers",
    "/dashboard/acts",
    "/dashboard/act?id=1",
    "/dashboard/flags",
    "/dashboard/devices/act?act=suspend&which=all&status=retired",
    "/dashboard/keys/create",
)
HEALTH = ("/dashboard/health", "/dashboard/health?doctor=run")
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
}


def assert_strict(page: httpx2.Response) -> None:
    """Threat 22: nothing that stands in a page runs, and nothing comes from elsewhere."""
    (policy,) = page.headers.get_list("content-security-policy")
    assert {part.strip() for part in policy.split(";")} == POLICY
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-frame-options"] == "DENY"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page.text)
    for source in re.findall(r'(?:src|href|action)="([^"]*)"', page.text):
        assert source.startswith(("/", "#")), source
        assert not source.startswith("//"), source


@pytest.mark.parametrize("path", [*PAGES, *HEALTH])
def test_pages_are_strict(guarded: Guarded, path: str) -> None:
    with guarded.browser(guarded.keys["admin"]) as browser:
        page = browser.get(path)
        assert page.status_code == 200
        assert_strict(page)
        assert page.text.count("<h1") == 1
        assert browser.head(path).content == b""

        def is_as_long() -> bool:
            """Return whether HEAD says the length of the page. A figure may grow between them."""
            both = browser.head(path), browser.get(path)
            head, body = (int(each.headers["content-length"]) for each in both)
            return head == body

        wait_until(is_as_long, 10)


def test_guides_exist() -> None:
    """Each page names a guide, and each of them is a page."""
    assert GUIDES.keys() <= ROUTES.keys()
    docs = Path(__file__).parents[4] / "docs" / "operate"
    for name in (*GUIDES.values(), "dashboard"):
        assert (docs / f"{name}.md").is_file()


def test_an_open_server_shows_them_to_whoever_is_on_this_machine(running: Running) -> None:
    with running.client(headers=PAGE) as browser:
        assert browser.get("/").headers["location"] == "/dashboard"
        page = browser.get("/dashboard")
        assert_strict(page)
        assert "Sign out" not in page.text
        assert browser.get("/dashboard/sign-in").headers["location"] == "/dashboard"
        foreign = browser.get("/dashboard", headers={"Host": "evil.example"})
        assert foreign.status_code == 421


def test_what_goes_wrong_is_a_page(guarded: Guarded) -> None:
    with guarded.browser(guarded.keys["admin"]) as browser:
        page = browser.get("/dashboard/nothing")
        assert page.status_code == 404
        assert_strict(page)
        assert "Not Found" in page.text
        wrong = browser.post("/dashboard")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
        assert_strict(wrong)


def test_the_overview_counts(running: Running) -> None:
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        client.post(VALIDATE, json=wire(camera.token()))
        before = client.get("/stats").json()["total_devices"]
        page = client.get("/dashboard/figures").text
        assert f"{before:,}" in page
        assert re.search(r"last hour: [\d,]+ PASS and", page)
        assert "PASS, last hour" in page


def test_the_curve_ends_with_the_current_minute(running: Running) -> None:
    """The first tokens of a newcomer are on it at once."""
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        begun = time.time()
        client.post(VALIDATE, json=wire(camera.token()))
        page = client.get("/dashboard/figures").text
        ended = time.time()
    found = re.search(r'data-curve="([^"]+)"', page)
    assert found is not None
    times, passes, fails = json.loads(unescape(found.group(1)))
    assert len(times) == len(passes) == len(fails) == 61
    assert times[-1] in {begun // 60 * 60, ended // 60 * 60}
    assert sum(passes[-2:]) >= 1, "the minute may have ended meanwhile"


def test_the_number_of_a_table_is_no_quantity(running: Running) -> None:
    with running.client() as client:
        assert ">Table 1234</h2>" in client.get("/dashboard/tables?table=1234").text


def test_the_overview_says_how_long_tokens_take(tmp_path: Path) -> None:
    """Over all processes, whichever of them draws the page. A note says that no token came."""
    running = start(tmp_path / "data", "sqlite:", "--workers", "2", SMA_TABLES="50")
    try:
        for _ in range(8):
            first = _fresh_page(running)
            assert "no single token came" in first
            assert "p95" not in first
            assert "room for 20,000, in 2 processes" in first
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        tokens = [camera.token(key_index=number) for number in range(200)]
        validate_all(running.server.url, tokens, connections=8)
        wait_until(lambda: all("p95" in _fresh_page(running) for _ in range(8)), 15)
        told = [
            float(each.replace(",", ""))
            for each in re.findall(r">([\d.,]+) ms</dd>", _fresh_page(running))
        ]
        assert len(told) == 3
        assert told == sorted(told)
        assert told[0] > 0
        assert told[2] < 10_000
    finally:
        running.server.close()


def _fresh_page(running: Running) -> str:
    """The overview, on a connection of its own, which any process may get."""
    with running.client(headers=PAGE) as client:
        return client.get("/dashboard/figures").text


def test_a_database_that_is_away_is_a_page(own_postgres: Postgres, tmp_path: Path) -> None:
    """With a sentence that a person understands, and nothing of the inside; and it comes back."""
    running, keys = start_with_keys(tmp_path / "data", own_postgres.create_database("away"))
    try:
        with running.client(headers=PAGE) as browser:
            assert sign_in(browser, keys["admin"]).status_code == 303
            assert browser.get("/dashboard").status_code == 200
            own_postgres.kill()
            for path in PAGES:
                page = browser.get(path)
                assert page.status_code == 503, path
                assert_strict(page)
                assert "database" in page.text
                assert "retry-after" in page.headers
                assert not re.search(r"psycopg|sqlalchemy|Traceback|postgresql://", page.text)
            export = browser.get("/dashboard/validations.csv", headers={"Accept": "*/*"})
            assert export.status_code == 503, "programs get the problem itself"
            assert export.headers["content-type"] == "application/problem+json"
            assert "x-request-id" in export.headers
            news = browser.get("/dashboard/figures", headers={"HX-Request": "true"})
            assert (news.status_code, news.text) == (503, "")
            assert news.headers["hx-reswap"] == "none", "the last figures stay where they are"
            own_postgres.start()
            wait_until(lambda: browser.get("/dashboard").status_code == 200, 20)
    finally:
        running.server.close()


def test_huge_queries_are_refused(guarded: Guarded) -> None:
    """None is an error of the server, and none keeps it from answering the next."""
    with guarded.browser(guarded.keys["admin"]) as browser:
        for path in ("/dashboard/devices", "/dashboard/validations", "/dashboard/device"):
            for query in (
                "q=" + "a" * 20_000,
                "device=" + "%ff" * 5_000,
                "&".join(f"a{number}=1" for number in range(4_000)),
                "serial=" + "%00" * 50,
                "q=" + "%F0%9F%93%B7" * 64,
                "after=%ed%a0%80&q=%ed%a0%80",
            ):
                answer = browser.get(f"{path}?{query}")
                assert answer.status_code < 500, (path, query[:20])
        assert browser.get("/dashboard").status_code == 200


# --- what pages load


def test_static_files_are_kept_for_good_by_their_content(running_on_sqlite: Running) -> None:
    with running_on_sqlite.client() as client:
        page = client.get("/dashboard").text
        loaded = re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', page)
        assert len(loaded) >= 5
        for url in loaded:
            answer = client.get(url)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            tag = answer.headers["etag"]
            assert client.get(url, headers={"If-None-Match": tag}).status_code == 304
            assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
            stale = client.get(url.partition("?")[0] + "?v=another")
            assert stale.headers["cache-control"] == "public, no-cache"


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "../pages.py", "..%2fpages.py", "vendor", "vendor/htmx/LICENSE"]
)
def test_nothing_else_is_served(running_on_sqlite: Running, name: str) -> None:
    with running_on_sqlite.client() as client:
        assert client.get(f"/dashboard/static/{name}").status_code == 404
        assert client.post("/dashboard/static/curve.js").status_code == 405


def test_no_file_names_another_host() -> None:
    """What is vendored asks nobody else for anything; an address in a comment is no request."""
    for name, file in static_files().items():
        hosts = set(re.findall(rb"https?://([\w.-]+)", file.content))
        assert hosts <= {b"github.com", b"www.w3.org"}, name
