"""The database's clock: kept by a monotonic one, and on SQLite trusted after an hour."""

from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma import elapsed
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import clock
from birthmark_sma.storage.clock import DatabaseClock

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NEVER = datetime.fromtimestamp(0, UTC)


class Machine:
    """A machine's clocks, in place of the module `time`."""

    CLOCK_BOOTTIME = 7

    def __init__(self) -> None:
        self.wall, self.uptime, self.asleep = BEGAN.timestamp(), 100.0, 0.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.uptime

    def clock_gettime(self, which: int) -> float:
        assert which == self.CLOCK_BOOTTIME
        return self.uptime + self.asleep

    def sleeps(self, seconds: float) -> None:
        self.wall += seconds
        self.asleep += seconds

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(clock, "time", machine)
    monkeypatch.setattr(elapsed, "time", machine)
    return machine


def test_postgresql_is_asked_once_and_its_time_goes_on(machine: Machine) -> None:
    """Threat 45: whatever happens to the machine's clock."""
    asked = []

    def ask() -> datetime:
        asked.append(1)
        return BEGAN - 9 * DAY

    times = DatabaseClock(ask)
    assert times.now() == BEGAN - 9 * DAY
    machine.passes(60)
    machine.wall += 25 * 3600
    assert times.now() == BEGAN - 9 * DAY + timedelta(minutes=1)
    assert times.expired_before(DAY) == BEGAN - 10 * DAY + timedelta(minutes=1)
    assert len(asked) == 1


def test_an_outage_leaves_the_last_answer(machine: Machine) -> None:
    answers: list[datetime] = [BEGAN]

    def ask() -> datetime:
        if not answers:
            raise DatabaseUnavailableError("The database does not answer")
        return answers.pop()

    times = DatabaseClock(ask)
    times.look()
    with pytest.raises(DatabaseUnavailableError):
        times.look()
    machine.passes(5)
    assert times.now() == BEGAN + timedelta(seconds=5)


def test_a_slow_answer_makes_no_clock_wrong(machine: Machine) -> None:
    """Who waits 30 seconds for a connection does not know when in them the database answered."""
    waits = [0.0, 30.0]

    def ask() -> datetime:
        machine.passes(waits.pop(0))
        return datetime.fromtimestamp(machine.wall, UTC)

    times = DatabaseClock(ask)
    times.look()
    times.look()
    assert times.complaint() is None
    assert times.now() == BEGAN + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("drift", "complaint"),
    [
        (4.0, None),
        (-4.0, None),
        (90_000.0, "90,000 seconds ahead of the database's"),
        (-7.0, "7 seconds behind the database's"),
    ],
)
def test_a_clock_that_disagrees_is_told(
    machine: Machine, drift: float, complaint: str | None
) -> None:
    times = DatabaseClock(lambda: BEGAN)
    times.look()
    machine.wall += drift
    assert times.complaint() == complaint


def test_on_sqlite_nothing_expires_in_the_first_hour(machine: Machine) -> None:
    """Threat 45: a machine without a battery begins in another year."""
    times = DatabaseClock(None)
    assert times.expired_before(DAY) == NEVER
    machine.passes(3599)
    assert times.expired_before(DAY) == NEVER
    machine.passes(1)
    assert times.expired_before(DAY) == BEGAN + timedelta(hours=1) - DAY
    assert times.complaint() is None


@pytest.mark.parametrize("jump", [25 * 3600.0, -25 * 3600.0, 3601.0])
def test_on_sqlite_nothing_expires_for_an_hour_after_a_jump(machine: Machine, jump: float) -> None:
    """Threat 45: wall clock and monotonic clock differ by more than an hour."""
    times = DatabaseClock(None)
    machine.passes(7200)
    assert times.expired_before(DAY) > NEVER
    machine.wall += jump
    assert times.expired_before(DAY) == NEVER
    assert "was set" in (times.complaint() or "")
    machine.passes(3599)
    assert times.expired_before(DAY) == NEVER
    machine.passes(1)
    assert times.expired_before(DAY) == times.now() - DAY
    assert times.complaint() is None


def test_a_machine_that_sleeps_has_a_right_clock(machine: Machine) -> None:
    """On Linux `time.monotonic` stands still while a laptop's lid is shut."""
    sqlite, postgresql = DatabaseClock(None), DatabaseClock(lambda: BEGAN)
    postgresql.look()
    machine.passes(7200)
    machine.sleeps(8 * 3600)
    assert (sqlite.complaint(), postgresql.complaint()) == (None, None)
    assert postgresql.now() == BEGAN + timedelta(hours=10)
    assert sqlite.expired_before(DAY) == sqlite.now() - DAY


def test_on_sqlite_a_clock_may_be_corrected_by_less(machine: Machine) -> None:
    times = DatabaseClock(None)
    machine.passes(7200)
    machine.wall -= 3599
    assert times.expired_before(DAY) == times.now() - DAY
