"""A clock that cannot be right is known and told; and no server can talk a camera into it."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.device import Camera, Delivery, WrongClockError
from birthmark_sma.device.clock import FILE, CameraClock
from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.elapsed import seconds_since_boot
from tests.device.conftest import StartCamera
from tests.support.in_process import InProcess
from tests.support.programs.power_loss import Power

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = BEGINS + 730 * DAY
NOW = BEGINS + 100 * DAY
SERVER, OTHER = "aggregator.example", "other.example"


class Camera24h:
    """A clock under test, what it reads, and the seconds since the machine's start."""

    def __init__(self, place: PrivateDirectory, lock: DirectoryLock) -> None:
        self.time = NOW
        self.seconds = 5_000.0
        self.place = place
        self.lock = lock
        self.clock = self.start()

    def start(self) -> CameraClock:
        """Begin anew, as the next process does."""
        self.clock = CameraClock(
            self.place,
            self.lock,
            lambda: self.time,
            begins=BEGINS,
            ends=ENDS,
            seconds=lambda: self.seconds,
        )
        return self.clock

    def wrong(self) -> bool:
        """What the clock says of itself."""
        return self.clock.fault() is not None

    def pass_by(self, span: timedelta) -> None:
        """Let time go by, for both clocks."""
        self.time += span
        self.seconds += span.total_seconds()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Camera24h]:
    """A clock that nobody has said anything against."""
    place = PrivateDirectory(tmp_path / "camera")
    lock = place.lock()
    yield Camera24h(place, lock)
    lock.release()


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), True),
        (BEGINS - timedelta(seconds=1), True),
        (BEGINS, False),
        (NOW, False),
        (ENDS, False),
        (ENDS + timedelta(seconds=1), True),
        (datetime(2106, 2, 7, tzinfo=UTC), True),
    ],
)
def test_what_the_certificate_tells(watched: Camera24h, at: datetime, wrong: bool) -> None:
    """Threat 50: no battery, and a date of the far future."""
    watched.time = at
    assert watched.wrong() is wrong


def test_a_clock_that_goes_back_is_found_out(watched: Camera24h) -> None:
    """Threat 50: also in the next process, and by no more than an hour that clocks are allowed."""
    watched.clock.hear(NOW, SERVER)
    watched.start()
    watched.time = NOW - HOUR
    assert not watched.wrong()
    watched.time = NOW - HOUR - timedelta(seconds=1)
    assert watched.wrong()
    watched.time = NOW
    assert not watched.wrong()


@pytest.mark.parametrize("ahead", [-2 * DAY, -2 * HOUR, 2 * HOUR, 300 * DAY])
def test_a_server_tells_the_time(watched: Camera24h, ahead: timedelta) -> None:
    """Threat 50: fast or slow, by more than the hour that the contract allows."""
    watched.time = NOW + ahead
    assert not watched.wrong()
    watched.clock.hear(NOW, SERVER)
    assert watched.wrong()
    watched.time = NOW + HOUR  # somebody sets it, and no server has to say anything anew
    assert not watched.wrong()
    watched.pass_by(5 * HOUR)
    assert not watched.wrong()


def test_a_server_alone_moves_no_bound(watched: Camera24h) -> None:
    """A hostile one bricks no camera: what it says is forgotten, and no file keeps it."""
    for time_said in (NOW + 400 * DAY, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)):
        watched.clock.hear(time_said, SERVER)
        assert watched.wrong()
    assert FILE not in watched.place.names()
    watched.start()
    assert not watched.wrong()


def test_one_that_agrees_is_enough(watched: Camera24h) -> None:
    """Of two aggregation servers, one with a wrong clock stops nobody."""
    watched.clock.hear(NOW + 400 * DAY, SERVER)
    watched.clock.hear(NOW, OTHER)
    assert not watched.wrong()


def test_a_servers_word_counts_for_a_day(watched: Camera24h) -> None:
    """Its clock may have been set since; a camera that holds its pictures back asks nobody."""
    watched.clock.hear(NOW + 400 * DAY, SERVER)
    watched.pass_by(DAY - HOUR)
    assert watched.wrong()
    watched.pass_by(HOUR)
    assert not watched.wrong()


def test_no_bound_is_beyond_the_certificates_end(watched: Camera24h) -> None:
    """Where a server agrees with a clock that is wrong already."""
    watched.time = ENDS + 5_000 * DAY
    watched.clock.hear(watched.time, SERVER)
    watched.start()
    watched.time = ENDS - HOUR
    assert not watched.wrong()


def test_a_certificate_at_its_end_is_no_wrong_clock(watched: Camera24h) -> None:
    """Where a server says that it is that late."""
    watched.time = ENDS + DAY
    assert watched.wrong()
    watched.clock.hear(ENDS + DAY, SERVER)
    assert not watched.wrong()


def test_the_bound_never_goes_back(watched: Camera24h) -> None:
    watched.clock.hear(NOW, SERVER)
    watched.time = NOW - 50 * DAY
    watched.clock.hear(NOW - 50 * DAY, SERVER)
    assert watched.wrong()
    watched.start()
    assert watched.wrong()


@pytest.mark.parametrize(
    "said", [datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC) for year in (1, 9999)]
)
def test_no_server_says_a_time_that_stops_the_camera(watched: Camera24h, said: datetime) -> None:
    """Threat 50: a Date at the end of the calendar overflowed a second later, at each picture."""
    watched.clock.hear(said, SERVER)
    watched.pass_by(HOUR)
    assert not watched.wrong()
    watched.clock.hear(watched.time, OTHER)
    assert not watched.wrong()


def test_the_card_is_not_written_at_each_answer(
    watched: Camera24h, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = PrivateDirectory.write

    def noted(self: PrivateDirectory, name: str, content: bytes) -> None:
        written.append(name)
        write(self, name, content)

    monkeypatch.setattr(PrivateDirectory, "write", noted)
    for _ in range(240):
        watched.pass_by(timedelta(minutes=1))
        watched.clock.hear(watched.time, SERVER)
    assert len(written) == 4


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"seen": "2099-01-01T00:00:00+00:00"}', b"[" * 9_999]
)
def test_a_damaged_file_is_no_reason_to_fail(
    watched: Camera24h, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds a bound, and the certificate has another."""
    watched.place.write(FILE, content)
    watched.start()
    assert "damaged or altered" in caplog.text
    assert not watched.wrong()
    watched.clock.hear(NOW, SERVER)
    caplog.clear()
    watched.start()
    assert caplog.text == ""


def test_a_full_disk_holds_nothing_up(watched: Camera24h, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    watched.clock.hear(NOW, SERVER)
    watched.time = NOW - 2 * HOUR
    assert watched.wrong()


def test_each_change_is_logged_once(watched: Camera24h, caplog: pytest.LogCaptureFixture) -> None:
    """Threat 50: no silence, and no flood either."""
    caplog.set_level(logging.INFO)
    for at in (NOW, datetime(1970, 1, 1, tzinfo=UTC), NOW, NOW):
        watched.time = at
        for _ in range(5):
            watched.clock.fault()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "says 1970-01-01T00:00:00Z" in caplog.messages[0]
    assert "set the clock" in caplog.messages[0]
    assert "right again" in caplog.messages[1]


def test_more_names_than_anybody_has_are_not_kept(watched: Camera24h) -> None:
    for number in range(1_000):
        watched.clock.hear(NOW, f"{number}.example")
    assert len(watched.clock._heard) == 16


def test_a_clock_for_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts while the machine sleeps where the system can, and elsewhere does what it can."""
    assert seconds_since_boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert seconds_since_boot() <= time.monotonic()


# --- the camera


Clocked = tuple[Camera, Callable[[datetime], None]]


@pytest.fixture
def clocked(start: StartCamera) -> Clocked:
    """A camera, and what sets its clock."""
    times = [datetime.now(UTC)]
    return start(clock=lambda: times[0]), lambda time: times.__setitem__(0, time)


def test_a_camera_says_so_and_may_refuse(clocked: Clocked) -> None:
    """Threat 50: an application can hold such pictures back, and capture them afterwards."""
    camera, set_clock = clocked
    assert [camera.clock_is_wrong, camera.clock_fault] == [False, None]
    set_clock(datetime(1970, 1, 1, tzinfo=UTC))
    assert [camera.clock_is_wrong, bool(camera.clock_fault)] == [True, True]
    with pytest.raises(WrongClockError, match="set the clock"):
        camera.capture(b"a picture", refuse_wrong_clock=True)
    assert camera.capture(b"a picture").content.captured_at.year == 1970
    now = datetime.now(UTC)
    set_clock(now)
    assert camera.capture(b"a picture", refuse_wrong_clock=True).content.captured_at == now


def test_a_start_with_a_wrong_clock_is_logged(
    start: StartCamera, caplog: pytest.LogCaptureFixture
) -> None:
    """Threat 50: even where the application asks nothing."""
    start(clock=lambda: datetime(1970, 1, 1, tzinfo=UTC))
    assert "set the clock" in caplog.text


def test_the_authority_tells_the_time_as_well(start: StartCamera, authority: Authority) -> None:
    """At the first start a clock that is a year ahead is known before the first picture."""

    def dated(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        found = answer()
        found.headers["Date"] = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return found

    ahead = datetime.now(UTC) + 365 * DAY
    camera = start(client=InProcess(authority, dated), clock=lambda: ahead)
    assert camera.clock_is_wrong


def test_what_a_server_says_survives_a_power_cut(
    start: StartCamera, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 30: a bound that was seen is on disk."""
    power = Power(monkeypatch)
    time_now = datetime.now(UTC) + 30 * DAY
    camera = start(clock=lambda: time_now)
    camera.hear_time(time_now, SERVER)
    left = power.cut(place, tmp_path / "left")
    power.close()
    assert start(left, clock=lambda: time_now - DAY).clock_is_wrong


def test_a_closed_camera_hears_all_the_same(clocked: Clocked) -> None:
    """A delivery that is under way when another thread closes the camera comes to its end."""
    camera, set_clock = clocked
    camera.queue.put(camera.capture(b"a picture"))
    set_clock(datetime.now(UTC) + 30 * DAY)

    def send(_: object) -> Delivery:
        camera.close()
        camera.hear_time(datetime.now(UTC) + 30 * DAY, SERVER)
        return Delivery.LATER

    assert camera.queue.drain(send) == 0
