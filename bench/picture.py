"""`python -m bench.picture`: make docs/overview.png, the README's first picture.

It starts an authority with devices and validations (tests/support/busy_authority.py) and takes a
screenshot of its dashboard in Chromium.
"""

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from bench.machine import TOP
from tests.support.busy_authority import start_lively
from tests.support.programs.browser import PROGRAM_VARIABLE, chromium, find_chromium, watched_page

_PICTURE = TOP / "docs" / "overview.png"
_WIDTH = 1280
_DEVICES = 48_000
_ROWS = 400_000
_TOKENS = 400


def main() -> None:
    """Fill an authority, sign in, and take the picture when current figures are on the page."""
    program = find_chromium(os.environ.get(PROGRAM_VARIABLE))
    with tempfile.TemporaryDirectory(prefix="sma-picture-") as folder:
        lively = start_lively(
            Path(folder),
            devices=_DEVICES,
            rows=_ROWS,
            serials=("camera-1", "camera-2"),
            tokens=_TOKENS,
        )
        with (
            lively.running.server,
            chromium(program) as browser,
            watched_page(browser, lively.running.server.url, width=_WIDTH) as watched,
        ):
            page = watched.page
            page.goto("/dashboard")
            page.get_by_label("Access key").fill(lively.admin)
            page.get_by_role("button", name="Sign in").click()
            expect(page.locator("#curve canvas")).to_be_visible()
            expect(page.get_by_text("p99")).to_be_visible(timeout=20_000)
            page.screenshot(path=_PICTURE, full_page=True)
            if watched.faults:
                sys.exit(f"the page has faults: {watched.faults}")
    print(f"Written: {_PICTURE}, {_PICTURE.stat().st_size / 1024:,.0f} KiB")


if __name__ == "__main__":
    main()
