"""/docs and /redoc in a real Chromium, and the vendored files of all pages."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

import birthmark_sma.web
from tests.support.programs.browser import (
    PROGRAM_VARIABLE,
    chromium,
    find_chromium,
    watched_page,
)
from tests.support.programs.running import Running

WEB = Path(birthmark_sma.web.__file__).parent
LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
PICTURES = Path(__file__).parents[4] / "build" / "docs"
_PROGRAM = os.environ.get(PROGRAM_VARIABLE)  # before the tests' environment is cleaned

# The digests of the files as their npm packages have them.
VENDORED = {
    "api/static/vendor/redoc/redoc.standalone.js": (
        "dcaf76612bc4a3fbcc923a8966dee2f6146a5f32e5ce1b6f02dd60cbbf89500b"
    ),
    "api/static/vendor/swagger-ui/swagger-ui-bundle.js": (
        "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2"
    ),
    "api/static/vendor/swagger-ui/swagger-ui.css": (
        "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d"
    ),
    "dashboard/static/vendor/htmx/htmx.min.js": (
        "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"
    ),
    "dashboard/static/vendor/uplot/uPlot.iife.min.js": (
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    ),
    "dashboard/static/vendor/uplot/uPlot.min.css": (
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(find_chromium(_PROGRAM)) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_works_offline(
    browser: Browser, running_on_sqlite: Running, path: str, dark: bool
) -> None:
    """The policy blocks nothing that the page needs, and no other host is asked."""
    with watched_page(browser, running_on_sqlite.server.url, dark=dark) as watched:
        page = watched.page
        page.goto(path)
        title = page.get_by_role("heading", name="Birthmark Simulated Manufacturer Authority").first
        expect(title).to_be_visible(timeout=30_000)
        expect(page.get_by_text("/api/v1/devices/provision").first).to_be_visible()
        themed = page.evaluate("document.documentElement.classList.contains('dark-mode')")
        assert themed is dark
        if path == "/redoc":
            shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (shown == "rgb(14, 20, 19)") is dark
            page.get_by_role("button", name="401 The request has no valid access key").first.click()
            options = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
            assert Axe().run(page, options=options).response["violations"] == []
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{path[1:]}-{'dark' if dark else 'light'}.png")
        own = f"another host was asked: blob:{running_on_sqlite.server.url}"  # ReDoc's search
        logo = [each for each in watched.faults if LOGO in each]
        assert [each for each in watched.faults if each not in logo and own not in each] == []
        # The policy blocks the only thing that ReDoc asks of another host, so nothing is sent.
        assert any("Content Security Policy" in each for each in logo) is (path == "/redoc")


def test_vendored_files_are_those_of_their_packages() -> None:
    """Each with its licence and its version."""
    found = {
        path.relative_to(WEB).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("*.js", "*.css")
        for path in WEB.glob(f"*/static/vendor/*/{pattern}")
    }
    assert found == VENDORED
    for path in found:
        folder = (WEB / path).parent
        assert (folder / "LICENSE").read_text(encoding="utf-8")
        assert (folder / "VERSION").read_text(encoding="ascii").count(".") == 2
