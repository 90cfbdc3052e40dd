"""The dashboard in a real Chromium: every page at both sizes, in both schemes, and its keyboard."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import PROGRAM_VARIABLE, chromium, find_chromium, watched_page
from tests.support.camera import VALIDATE, Camera, wire
from tests.support.keys import bearer, start_with_keys
from tests.support.running import Running

PAGES = ("Overview", "Devices", "Validations", "Key tables", "Certificates", "Callers")
HOSTILE = "<img src=x onerror=alert(1)>"
_PROGRAM = os.environ.get(PROGRAM_VARIABLE)  # before the tests' environment is cleaned


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here."""
    with chromium(find_chromium(_PROGRAM)) as opened:
        yield opened


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A server that asks for keys, with a hostile device and a few verdicts; and an admin key."""
    directory: Path = tmp_path_factory.mktemp("dashboard")
    running, keys = start_with_keys(directory / "data", "sqlite:")
    with (
        running.client(headers=bearer(keys["provision"])) as maker,
        running.client(headers=bearer(keys["validate"])) as aggregator,
    ):
        camera = Camera.provisioned(maker, HOSTILE)
        token = wire(camera.token())
        for body in (token, token, wire(camera.token()), {**token, "key_index": 7}):
            assert aggregator.post(VALIDATE, json=body).status_code == 200
    yield running, keys["admin"]
    running.server.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_clicks_through_every_page(
    browser: Browser, guarded: tuple[Running, str], width: int, dark: bool
) -> None:
    """No error in the console, nothing asked of another host, nothing wider than the screen."""
    running, key = guarded
    with watched_page(browser, running.server.url, width=width, dark=dark) as watched:
        page = watched.page
        page.goto("/")
        page.get_by_label("Access key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        for name in PAGES:
            page.get_by_role("navigation", name="Pages", exact=True).get_by_role(
                "link", name=name
            ).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            current = page.locator("nav [aria-current=page]")
            expect(current).to_have_text(name)
        page.goto("/dashboard/devices")
        page.get_by_role("link", name=HOSTILE).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        expect(page.get_by_role("heading", name="Certificate", exact=True)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.goto("/dashboard")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert watched.faults == []


def test_the_overview_renews_itself(browser: Browser, guarded: tuple[Running, str]) -> None:
    """The curve is drawn, and the figures change without a person."""
    running, key = guarded
    with watched_page(browser, running.server.url) as watched:
        page = watched.page
        page.goto("/dashboard")
        page.get_by_label("Access key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#curve canvas")).to_be_visible()
        with page.expect_response("**/dashboard/figures?hours=1", timeout=15_000) as renewed:
            pass
        assert renewed.value.status == 200
        expect(page.locator("#curve canvas")).to_be_visible()
        expect(page.locator("#figures .tile").first).to_be_visible()
        assert watched.faults == []


def test_the_keyboard_is_enough(browser: Browser, guarded: tuple[Running, str]) -> None:
    """The first key leads past the navigation, and what has the focus is to be seen."""
    running, key = guarded
    with watched_page(browser, running.server.url) as watched:
        page = watched.page
        page.goto("/dashboard/devices")
        page.keyboard.type(key)  # the field has the focus
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Devices")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Serial begins with")).to_be_focused()
        page.keyboard.type("<img")
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
        assert watched.faults == []
