"""The daily jobs of the dashboard in a real Chromium: by mouse, and with the keyboard alone.

What each page looks like, at both sizes and in both schemes, is left in build/dashboard/.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.busy_authority import Lively, start_lively
from tests.support.programs.browser import (
    PROGRAM_VARIABLE,
    Watched,
    barriers,
    chromium,
    find_chromium,
    watched_page,
)

PICTURES = Path(__file__).parents[3] / "build" / "dashboard"
_PROGRAM = os.environ.get(PROGRAM_VARIABLE)  # before the tests' environment is cleaned
_MOST_TABS = 150


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here."""
    with chromium(find_chromium(_PROGRAM)) as opened:
        yield opened


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lively]:
    """One server for all of them, with cameras for each way to do the jobs."""
    started = start_lively(
        tmp_path_factory.mktemp("actions"),
        devices=40,
        rows=50,
        serials=[f"{way}-{number}" for way in ("mouse", "keyboard") for number in range(5)],
        tokens=1,
    )
    yield started
    started.running.server.close()


class Mouse:
    """A person who points and clicks."""

    way = "mouse"

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.page = watched.page

    def press(self, name: str) -> None:
        """Follow a link or press a button, the first of this name."""
        self.find(name).click()

    def check(self, name: str) -> None:
        """Check a box."""
        self.page.get_by_label(name, exact=True).check()

    def choose(self, label: str, value: str) -> None:
        """Choose from a list."""
        self.page.get_by_label(label, exact=True).select_option(value)

    def type(self, label: str, text: str) -> None:
        """Type into a field."""
        self.page.get_by_label(label).fill(text)

    def find(self, name: str) -> Locator:
        """Return the first link or button of this name."""
        link = self.page.get_by_role("link", name=name, exact=True)
        return link.or_(self.page.get_by_role("button", name=name, exact=True)).first


class Keyboard(Mouse):
    """A person who uses Tab, Enter, Space and letters."""

    way = "keyboard"

    def press(self, name: str) -> None:
        """Go to a link or button, and press Enter."""
        self.reach(self.find(name))
        self.page.keyboard.press("Enter")

    def check(self, name: str) -> None:
        """Go to a box, and press Space."""
        self.reach(self.page.get_by_label(name, exact=True))
        self.page.keyboard.press("Space")

    def choose(self, label: str, value: str) -> None:
        """Go to a list, and type the beginning of the choice."""
        found = self.page.get_by_label(label, exact=True)
        self.reach(found)
        self.page.keyboard.type(value.replace("_", " "))
        expect(found).to_have_value(value)

    def type(self, label: str, text: str) -> None:
        """Go to a field, and type."""
        self.reach(self.page.get_by_label(label))
        self.page.keyboard.type(text)

    def reach(self, wanted: Locator) -> None:
        """Press Tab until something has the focus, which must then be visible."""
        expect(wanted).to_be_visible()
        for _ in range(_MOST_TABS):
            if wanted.evaluate("each => each === document.activeElement"):
                break
            self.page.keyboard.press("Tab")
        expect(wanted).to_be_focused()
        assert wanted.evaluate("each => getComputedStyle(each).outlineStyle") != "none"


def look(person: Mouse, name: str) -> None:
    """Nothing keeps anybody from using the page, at both sizes and in both schemes."""
    page, watched = person.page, person.watched
    if person.way != "mouse":
        return
    for width, kind in ((390, "phone"), (1280, "desktop")):
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert barriers(page) == [], (name, kind, scheme)
            page.screenshot(path=PICTURES / f"{kind}-{scheme}-{name}.png", full_page=True)
    assert watched.faults == [], name


def heading(page: Page, text: str) -> None:
    """Wait for the page of this heading."""
    expect(page.get_by_role("heading", level=1)).to_have_text(text)


def told(page: Page, text: str) -> None:
    """The page says that an act was done, and a screen reader reads it first."""
    expect(page.get_by_role("status").first).to_contain_text(text)
    expect(page.get_by_role("status").first).to_be_focused()


@pytest.fixture(params=[Mouse, Keyboard], ids=["mouse", "keyboard"])
def person(request: pytest.FixtureRequest, browser: Browser, lively: Lively) -> Iterator[Mouse]:
    """An operator who has signed in."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with watched_page(browser, lively.running.server.url) as watched:
        watched.page.goto("/dashboard/devices")
        someone: Mouse = request.param(watched)
        someone.type("Access key", lively.admin)
        someone.press("Sign in")
        heading(watched.page, "Devices")
        yield someone
        assert watched.faults == []


def test_one_device(person: Mouse) -> None:
    """Suspend, undo, allow a re-enrolment, revoke."""
    page, serial = person.page, f"{person.way}-0"
    page.goto(f"/dashboard/device?serial={serial}")
    look(person, "device-acts")
    person.press("Suspend…")
    heading(page, f"Suspend {serial}")
    look(person, "suspend")
    person.press("Suspend this device")
    told(page, f"device suspend, {serial}")
    look(person, "suspended")
    person.press("Undo: reinstate…")
    heading(page, f"Reinstate {serial}")
    person.press("Reinstate this device")
    told(page, f"device reinstate, {serial}")
    person.press(serial)
    person.press("Allow re-enrolment…")
    look(person, "allow-re-enrolment")
    person.choose("Allowed for", "30 days")
    person.press("Allow re-enrolment")
    told(page, f"device allow re enrolment, {serial}")
    person.press("Undo: forbid re-enrolment…")
    look(person, "forbid-re-enrolment")
    person.press("Forbid re-enrolment")
    told(page, f"device forbid re enrolment, {serial}")
    person.press(serial)
    person.press("Revoke…")
    look(person, "revoke")
    person.choose("Reason", "key_compromise")
    person.press("Revoke this device")
    told(page, f"device revoke, {serial}")
    expect(page.get_by_text("key_compromise")).to_be_visible()


def test_several_devices(person: Mouse) -> None:
    """Chosen ones, then all that match a search, which asks for their number."""
    page = person.page
    person.type("Serial begins with", f"{person.way}-")
    person.press("Search")
    look(person, "devices-to-choose")
    for number in (1, 2):
        person.check(f"Choose {person.way}-{number}")
    person.choose("Act on several", "suspend")
    person.press("The chosen rows…")
    heading(page, "Suspend 2 devices")
    look(person, "suspend-chosen")
    person.press("Suspend 2 devices")
    told(page, "device suspend, 2 devices")
    look(person, "suspended-chosen")
    page.goto(f"/dashboard/devices?q={person.way}-&status=suspended")
    person.choose("Act on several", "retire")
    person.press("All that match the search…")
    heading(page, "Retire 2 devices")
    look(person, "retire-all")
    person.type("Type the number of devices", "2")
    person.press("Retire 2 devices")
    told(page, "device retire, 2 devices")


def test_access_keys(person: Mouse) -> None:
    """Create one, rotate it, revoke it."""
    page, name = person.page, f"newsroom-{person.way}"
    person.press("Callers")
    look(person, "callers")
    person.press("Create a key…")
    look(person, "create-key")
    person.type("Name of its holder", name)
    person.choose("Scope", "validate")
    person.press("Create the key")
    heading(page, f"The secret of {name}")
    secret = page.locator("#secret").inner_text()
    look(person, "secret")
    person.press("Copy")
    expect(page.locator("#copied")).not_to_be_empty()
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("There is already a key")
    person.watched.faults.clear()  # the status 422 of the page
    look(person, "create-key-refused")
    page.goto("/dashboard/callers")
    assert secret not in page.content()
    person.press(f"Rotate {name}")
    look(person, "rotate-key")
    person.choose("The present secret stays valid for", "7 days")
    person.press("Rotate the key")
    assert page.locator("#secret").inner_text() != secret
    person.press("I have copied it")
    person.press(f"Revoke {name}")
    look(person, "revoke-key")
    person.press("Revoke the key")
    told(page, f"access key revoke, {name}")


def test_flags_and_exports(person: Mouse) -> None:
    """Review a flag, then download the act."""
    page = person.page
    person.press("Flags")
    look(person, "flags")
    box = page.get_by_role("checkbox").first
    person.check(str(box.get_attribute("aria-label")))
    person.press("Review the chosen flags…")
    heading(page, "Review 1 flag")
    look(person, "review-flags")
    person.press("Mark as reviewed")
    told(page, "device review flags")
    person.press("Acts")
    with page.expect_download() as download:
        person.press("JSON Lines")
    assert "device.review-flags" in download.value.path().read_text()
    person.press("Validations")
    with page.expect_download() as download:
        person.press("CSV")
    assert "validation_result" in download.value.path().read_text()
