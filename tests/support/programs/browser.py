"""Run Chromium for browser tests. A page that sends a request to another host is a fault."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

PROGRAM_VARIABLE = "SMA_TEST_CHROMIUM"
"""The environment variable that names the Chromium to use."""

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ARGUMENTS = (
    "--no-sandbox",  # tests may run as root, where Chromium has no sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Watched:
    """A page, and the faults that were seen on it."""

    page: Page
    faults: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """The paths of the pages that a test has looked at."""


def barriers(page: Page) -> list[str]:
    """Return the accessibility violations that axe finds on a page: rule, impact, elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']][:3]}"
        for each in found
    ]


def find_chromium(named: str | None) -> str:
    """Return the path of Chromium: the named one, else the system's, else Playwright's.

    Fails if there is none.
    """
    found = named or next((p for p in map(shutil.which, _PROGRAMS) if p), None)
    if found is not None:
        return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    assert Path(own).exists(), f"No Chromium: `make setup-browser`, or name one: {PROGRAM_VARIABLE}"
    return own


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run a headless browser until the end of the block, without the proxies of the environment."""
    environ: dict[str, str | float | bool] = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS, env=environ)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(
    browser: Browser, url: str, *, width: int = 1280, dark: bool = False
) -> Iterator[Watched]:
    """Open a page, and note console errors and requests to another host than that of `url`."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": 844},
        color_scheme="dark" if dark else "light",
    )
    page = context.new_page()
    watched = Watched(page)
    host = urlsplit(url).netloc

    def heard(said: ConsoleMessage) -> None:
        if said.type in {"error", "warning"}:
            watched.faults.append(said.text)

    def asked(request: Request) -> None:
        if urlsplit(request.url).netloc != host:
            watched.faults.append(f"another host was asked: {request.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: watched.faults.append(str(error)))
    page.on("request", asked)
    try:
        yield watched
    finally:
        context.close()
