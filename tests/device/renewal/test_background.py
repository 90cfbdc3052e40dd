"""The thread that renews: it begins by itself, survives errors, and ends with the camera."""

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import httpx2
import pytest

from birthmark_sma.device import Renewal
from birthmark_sma.device.renewal import background
from tests.device.renewal.conftest import Cameras, Time
from tests.support.cameras.renewing_authority import RenewingAuthority
from tests.support.in_process import refused_connection
from tests.support.programs.running import wait_until

NAME = "certificate renewal"


def threads() -> int:
    """Return the number of renewing threads."""
    return sum(thread.name == NAME for thread in threading.enumerate())


class Waits:
    """Waits of a camera whose time is the test's: each lets the time pass at once."""

    def __init__(self, time: Time, most: int) -> None:
        self.seconds: list[float] = []
        self._time, self._most = time, most
        self.over, self.released = threading.Event(), threading.Event()

    def __call__(self, seconds: float) -> None:
        """Let the time pass, and stand still after the last wait."""
        self.seconds.append(seconds)
        self._time.now += timedelta(seconds=seconds)
        if len(self.seconds) >= self._most:
            self.over.set()
            self.released.wait(60)


@pytest.fixture
def waits(time: Time) -> Iterator[Callable[[int], Waits]]:
    """Make waits that let the thread end with the test."""
    made: list[Waits] = []

    def make(most: int) -> Waits:
        made.append(Waits(time, most))
        return made[-1]

    yield make
    for each in made:
        each.released.set()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin at once."""
    monkeypatch.setattr(background, "_FIRST_SECONDS", 0.0)


def test_a_camera_renews_by_itself(cameras: Cameras, due: Callable[[], None]) -> None:
    due()
    camera = cameras.start(renewal=Renewal())
    before = cameras.kept().device_certificate
    wait_until(lambda: cameras.kept().device_certificate != before, 20)
    cameras.judge(camera.capture(b"picture"))
    camera.close()
    wait_until(lambda: threads() == 0, 20)


def test_months_in_a_moment(cameras: Cameras, time: Time, waits: Callable[[int], Waits]) -> None:
    """With a wait of the test's: a request a day, and one renewal."""
    time.advance(days=486)
    passing = waits(96 * 130)
    camera = cameras.start(renewal=Renewal(wait=passing))
    before = camera.certificate
    assert passing.over.wait(120)
    assert camera.certificate != before
    assert len(cameras.authority.renewals) == 1
    assert 130 <= len(cameras.authority.requests) <= 300
    assert max(passing.seconds) <= 900
    cameras.judge(camera.capture(b"picture"))


def test_an_error_does_not_end_it(
    cameras: Cameras,
    due: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    waits: Callable[[int], Waits],
) -> None:
    """Not even one that nobody foresaw. The pauses grow."""

    def surprise(_: httpx2.Request, __: Callable[[], httpx2.Response]) -> httpx2.Response:
        raise RuntimeError("a surprise")

    due()
    cameras.authority.faults = [surprise] * 4
    passing = waits(40)
    with caplog.at_level(logging.INFO):
        camera = cameras.start(renewal=Renewal(wait=passing))
        before = camera.certificate
        wait_until(lambda: camera.certificate != before, 20)
    assert "The renewal of the certificate failed" in caplog.text
    assert passing.seconds[1] >= 30


def test_closing_does_not_wait_for_the_authority(cameras: Cameras, due: Callable[[], None]) -> None:
    """A request that is under way ends by itself; the next start repeats it."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(request: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        asked.set()
        assert go_on.wait(20)
        return answer()

    due()
    cameras.authority.faults = [lambda _, answer: answer(), slow]
    camera = cameras.start(renewal=Renewal())
    assert asked.wait(20)
    camera.close()
    go_on.set()
    wait_until(lambda: threads() == 0, 20)
    assert cameras.kept().renewal is not None
    again = cameras.start()
    again.renew_if_due()
    assert cameras.kept().renewal is None
    assert len(cameras.authority.known) == 2


def test_a_client_that_the_app_has_closed(
    cameras: Cameras, due: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was for the first start. Renewals come much later, with a client of their own."""
    due()
    camera = cameras.start()
    before = camera.certificate
    cameras.authority.close()
    given = cameras.authority

    def open_another(**_: object) -> RenewingAuthority:
        own = RenewingAuthority(cameras.time)
        own.ca, own.known, own.window = given.ca, given.known, given.window
        return own

    monkeypatch.setattr(httpx2, "Client", open_another)
    camera.renew_if_due()
    assert camera.certificate != before


def test_no_thread_where_the_app_renews(cameras: Cameras) -> None:
    cameras.start()
    assert threads() == 0


def test_an_authority_that_is_away_for_a_day(
    cameras: Cameras, due: Callable[[], None], waits: Callable[[int], Waits]
) -> None:
    """It is asked ever more seldom: a fleet must not flood it when it comes back."""
    due()
    cameras.authority.faults = [refused_connection] * 1_000
    passing = waits(400)
    cameras.start(renewal=Renewal(wait=passing))
    assert passing.over.wait(60)
    passed = sum(passing.seconds)
    assert passed > 86_400
    assert len(cameras.authority.requests) < passed / 1_700 + 15
