"""The dashboard in a real Chromium, before 10,000 devices and 200,000 audit rows.

Every page at both sizes and in both schemes: what each looks like is left in build/dashboard/.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import change_devices
from birthmark_sma.web.routes import TABLE
from tests.support.busy_authority import Lively, start_lively
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import suspend_device
from tests.support.programs.browser import (
    PROGRAM_VARIABLE,
    Watched,
    chromium,
    find_chromium,
    watched_page,
)

PAGES = (
    *("Overview", "Devices", "Flags", "Validations", "Key tables", "Certificates", "Callers"),
    *("Acts", "Health"),
)
DOCUMENTATION = {"API": "/docs", "ReDoc": "/redoc"}
IN_VIEW = {
    "Devices": ("Serial", "Status"),
    "Validations": ("Result", "Device"),
    "Callers": ("Name", "State"),
    "Acts": ("Time (UTC)", "Act"),
}
"""The columns of each list that are in view on a phone."""
NO_PAGES = {
    *("/dashboard/acts.jsonl", "/dashboard/validations.csv", "/dashboard/validations.jsonl"),
    *("/dashboard/certificates/download", "/dashboard/device/certificate"),
    *("/dashboard/figures", "/dashboard/health/findings", "/dashboard/static"),
    *("/dashboard/devices/act", "/dashboard/device/re-enrolment", "/dashboard/flags/review"),
    *("/dashboard/keys/create", "/dashboard/keys/rotate", "/dashboard/keys/revoke"),
}
"""Routes of the dashboard that are downloads or parts of pages, or that test_dashboard_actions.py
looks at."""
HOSTILE = "<img src=x onerror=alert(1)>"
LONG = "WWWWWWWWWWWWWWWW.a-serial-as-long-as-one-may-be.WWWWWWWWWWWWWWWW"
PICTURES = Path(__file__).parents[3] / "build" / "dashboard"
_PROGRAM = os.environ.get(PROGRAM_VARIABLE)  # before the tests' environment is cleaned

# What no link of the navigation leads to, by the name of its picture.
PLACES = {
    "overview-24-hours": "/dashboard?range=24h",
    "overview-30-days": "/dashboard?range=30d",
    "overview-zoomed": "/dashboard?since=2026-01-01T00:00&until=2026-01-01T01:00",
    "devices-by-time": "/dashboard/devices?sort=provisioned&direction=descending",
    "devices-by-change": "/dashboard/devices?status=suspended&sort=changed&direction=descending",
    "devices-found": "/dashboard/devices?q=pixel&family=Android&status=suspended",
    "devices-flagged": "/dashboard/devices?flagged=yes",
    "devices-none": "/dashboard/devices?q=nothing",
    "device-hostile": f"/dashboard/device?serial={HOSTILE}",
    "device-long": f"/dashboard/device?serial={LONG}",
    "device-suspended": "/dashboard/device?serial=camera-2",
    "device-busy": "/dashboard/device?serial=RPI5-000001",
    "validations-fail": "/dashboard/validations?result=FAIL",
    "validations-week": "/dashboard/validations?range=7d&reason=not_opened",
    "health-examined": "/dashboard/health?doctor=run",
    "validations-none": "/dashboard/validations?device=nothing",
    "table": "/dashboard/tables?by=use&table=7",
    "table-none": "/dashboard/tables?table=9999",
    "acts-of-a-device": "/dashboard/acts?subject=camera-2&act=device.suspend",
    "acts-none": "/dashboard/acts?actor=nobody",
}
ACTS = {
    "act-on-a-device": "/dashboard/acts?act=device.suspend&subject=camera-2",
    "act-on-several": "/dashboard/acts?act=device.reinstate",
}
"""Lists of acts whose newest act is looked at."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here."""
    with chromium(find_chromium(_PROGRAM)) as opened:
        yield opened


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    """One server for all of them, with a few cameras that would do harm or are hard to show."""
    started = start_lively(
        tmp_path_factory.mktemp("dashboard"),
        devices=10_000,
        rows=200_000,
        serials=(HOSTILE, LONG, "camera-1", "camera-2"),
        tokens=60,
    )
    with started.running.database() as database:
        for change in (states.suspend(ACTOR), states.reinstate(ACTOR)):
            change_devices(database, [HOSTILE, LONG, "camera-1"], change)
        suspend_device(database, "camera-2")
    yield started
    started.running.server.close()


def sign_in(page: Page, key: str, place: str = "/") -> None:
    page.goto(place)
    page.get_by_label("Access key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def barriers(page: Page) -> list[str]:
    """What axe finds that keeps somebody from using a page: rule, weight, and where.

    Only violations are told in full: to describe what every rule passes takes nine tenths of the
    time on a long page.
    """
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']][:3]}"
        for each in found
    ]


def look(watched: Watched, name: str, width: int) -> None:
    """Nothing keeps anybody out, nothing is wider than the screen; and a picture of it."""
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert barriers(page) == [], name
    assert watched.faults == [], name
    watched.seen.add(urlsplit(page.url).path)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_a_person_clicks_through_every_page(
    browser: Browser, lively: Lively, width: int, dark: bool
) -> None:
    """No error in the console, nothing asked of another host, and nothing serious for axe."""
    kind = f"{'phone' if width < 600 else 'desktop'}-{'dark' if dark else 'light'}"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with watched_page(browser, lively.running.server.url, width=width, dark=dark) as watched:
        page = watched.page
        page.goto("/")
        look(watched, f"{kind}-sign-in", width)
        sign_in(page, lively.admin)
        for name in PAGES:
            navigation = page.get_by_role("navigation", name="Pages", exact=True)
            navigation.get_by_role("link", name=name).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            expect(page.locator("nav [aria-current=page]")).to_have_text(name)
            look(watched, f"{kind}-{name.lower().replace(' ', '-')}", width)
        for name, place in PLACES.items():
            page.goto(place)
            look(watched, f"{kind}-{name}", width)
        page.goto("/dashboard/validations?device=camera-1")
        page.locator("tbody tr td a").first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Validation")
        look(watched, f"{kind}-validation", width)
        page.locator("dd a[href*=request_id]").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        look(watched, f"{kind}-validations-of-a-request", width)
        for name, place in ACTS.items():
            page.goto(place)
            page.locator("tbody a[href^='/dashboard/act?']").first.click()
            expect(page.get_by_role("heading", level=1)).to_contain_text("device.")
            look(watched, f"{kind}-{name}", width)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        page.goto("/dashboard")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert watched.faults == []
        pages = {
            route.path
            for route in TABLE
            if route.path.startswith("/dashboard") and "GET" in route.methods
        }
        assert watched.seen == pages - NO_PAGES, "a new page must be looked at"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", DOCUMENTATION)
def test_the_navigation_leads_to_the_documentation(
    browser: Browser, lively: Lively, name: str, width: int, dark: bool
) -> None:
    """The server asks for keys: the session is enough, for the page and all that it loads."""
    kind = f"{'phone' if width < 600 else 'desktop'}-{'dark' if dark else 'light'}"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with watched_page(browser, lively.running.server.url, width=width, dark=dark) as watched:
        page = watched.page
        sign_in(page, lively.admin)
        navigation = page.get_by_role("navigation", name="Pages", exact=True)
        navigation.get_by_role("link", name=name).click()
        place = DOCUMENTATION[name]
        page.wait_for_url(f"**{place}")
        expect(page.get_by_text("/api/v1/devices/provision").first).to_be_attached(timeout=30_000)
        title = page.get_by_role("heading", name="Birthmark Simulated Manufacturer Authority")
        expect(title.first).to_be_visible()
        page.screenshot(path=PICTURES / f"{kind}-documentation-{place[1:]}.png")
        assert not [each for each in watched.faults if "status of" in each]


@pytest.mark.parametrize("name", IN_VIEW)
def test_a_phone_shows_device_and_state_without_scrolling(
    browser: Browser, lively: Lively, name: str
) -> None:
    with watched_page(browser, lively.running.server.url, width=390) as watched:
        page = watched.page
        sign_in(page, lively.admin, f"/dashboard/{name.lower()}")
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        for column in IN_VIEW[name]:
            box = page.get_by_role("columnheader", name=column, exact=True).bounding_box()
            assert box is not None, column
            assert box["x"] + box["width"] <= 390, column
        page.screenshot(path=PICTURES / f"phone-top-{name.lower()}.png")


def test_what_goes_wrong_is_a_page(browser: Browser, lively: Lively) -> None:
    """A wrong key, and an address that leads nowhere."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, "sma_wrong")
        expect(page.get_by_role("alert")).to_have_text("This access key is not known here.")
        expect(page.get_by_label("Access key")).to_be_focused()
        assert barriers(page) == []
        page.screenshot(path=PICTURES / "sign-in-wrong.png")
        sign_in(page, lively.admin, "/dashboard/nowhere")
        expect(page.get_by_role("heading", level=1)).to_have_text("Not Found")
        assert barriers(page) == []
        page.screenshot(path=PICTURES / "nowhere.png")
        assert all("status of 40" in each for each in watched.faults), "of the page itself alone"


def test_a_device_is_found_from_its_validation(browser: Browser, lively: Lively) -> None:
    """A serial that would be markup is text wherever a person meets it."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, lively.admin, "/dashboard/validations")
        page.get_by_label("Device").fill(HOSTILE)
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=HOSTILE).first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        expect(page.get_by_role("heading", name="Certificate", exact=True)).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download with chain").click()
        assert download.value.path().read_text().count("BEGIN CERTIFICATE") == 3
        page.goto("/dashboard/validations?result=FAIL")
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV", exact=True).click()
        assert download.value.path().read_text().count("FAIL") > 1_000
        assert watched.faults == []


def test_the_overview_renews_itself(browser: Browser, lively: Lively) -> None:
    """The curve is drawn, and the figures change without a person."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, lively.admin, "/dashboard")
        expect(page.locator("#curve canvas")).to_be_visible()
        with page.expect_response("**/dashboard/figures?range=1h", timeout=15_000) as renewed:
            pass
        assert renewed.value.status == 200
        expect(page.locator("#curve canvas")).to_be_visible()
        expect(page.locator("#figures .tile").first).to_be_visible()
        assert watched.faults == []


def test_the_mouse_zooms_into_the_chart(browser: Browser, lively: Lively) -> None:
    """The other filters stay, and the table says what the chart shows."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, lively.admin, "/dashboard/validations?range=24h&result=FAIL")
        box = page.locator("#curve .u-over").bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.5, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=5)
        page.mouse.up()
        page.wait_for_url("**since=*")
        assert "result=FAIL" in page.url
        assert "range" not in page.url
        expect(page.get_by_role("heading", name="Verdicts per minute")).to_be_visible()
        expect(page.locator("#curve canvas")).to_be_visible()
        page.screenshot(path=PICTURES / "zoomed.png")
        assert watched.faults == []


def test_the_keyboard_zooms_into_the_chart(browser: Browser, lively: Lively) -> None:
    """By the links above the chart, and by the table below it, from a month to a minute."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, lively.admin, "/dashboard?range=30d")
        page.get_by_role("link", name="Zoom in").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**since=*")
        for _ in range(5):
            page.locator("summary").focus()
            page.keyboard.press("Enter")
            rows = page.get_by_role("table").first.locator("tbody a")
            if rows.count() == 0:
                break
            page.keyboard.press("Tab")
            before = page.url
            expect(rows.first).to_be_focused()
            page.keyboard.press("Enter")
            page.wait_for_url(lambda url, before=before: url != before)  # type: ignore[misc]
        expect(page.get_by_role("heading", name="Verdicts per minute")).to_be_visible()
        assert watched.faults == []


def test_the_doctor_examines_when_the_page_opens(browser: Browser, lively: Lively) -> None:
    """Without waiting for it; and again on request, by the keyboard."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        sign_in(page, lively.admin, "/dashboard/health")
        expect(page.get_by_text("Examined at")).to_be_visible(timeout=60_000)
        page.get_by_role("link", name="Examine now").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**doctor=run")
        expect(page.get_by_text("Examined at")).to_be_visible(timeout=60_000)
        assert watched.faults == []


def test_the_keyboard_is_enough(browser: Browser, lively: Lively) -> None:
    """The first key leads past the navigation, and what has the focus is to be seen."""
    with watched_page(browser, lively.running.server.url) as watched:
        page = watched.page
        page.goto("/dashboard/devices")
        page.keyboard.type(lively.admin)  # the field has the focus
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Devices")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for status in ("all", "active", "suspended", "revoked", "retired"):
            page.keyboard.press("Tab")
            expect(page.get_by_role("link", name=re.compile(f"^{status} "))).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Serial begins with")).to_be_focused()
        page.keyboard.type("<img")
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
        assert watched.faults == []
