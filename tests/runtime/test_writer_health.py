"""The rule of readiness: the last write ended well and in time, and nothing hangs."""

from itertools import count

import pytest

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.runtime import writer_health
from birthmark_sma.runtime.writer_health import STALL_SECONDS, Outcome, WriterHealth

SLOW = STALL_SECONDS + 1
FULL = DatabaseUnavailableError("no room", "", DatabaseFault.FULL)


class Clock:
    """A clock that a test sets."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def committed(self, seconds: float) -> Outcome:
        """Return the outcome that a writer sets after a commit."""
        return Outcome(self.now, None, seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the module."""
    clock = Clock()
    monkeypatch.setattr(writer_health, "monotonic", clock)
    return clock


@pytest.mark.usefixtures("clock")
def test_a_writer_that_has_written_nothing_has_no_fault() -> None:
    health = WriterHealth()
    assert not health.is_known
    assert health.fault(0) is None
    assert health.fault(SLOW) is not None


def test_the_last_batch_counts(clock: Clock) -> None:
    health = WriterHealth()
    health.last = clock.committed(0.01)
    assert health.fault(0) is None
    health.failed(clock.now, FULL)
    assert health.fault(0) is FULL
    health.last = clock.committed(SLOW)
    slow = health.fault(0)
    assert slow is not None
    assert slow.fault is DatabaseFault.BUSY
    health.last = clock.committed(0.01)
    assert health.fault(0) is None


def test_a_fault_does_not_pass_with_time(clock: Clock) -> None:
    """Only a write that succeeds ends it."""
    health = WriterHealth()
    health.failed(clock.now, FULL)
    clock.now += 3_600
    assert health.fault(0) is FULL


def test_a_write_that_hangs_is_a_fault_while_it_lasts(clock: Clock) -> None:
    health = WriterHealth()
    health.last = clock.committed(0.01)
    clock.now += SLOW
    assert health.fault(SLOW) is not None
    assert health.fault(STALL_SECONDS - 1) is None


def test_items_that_wait_for_their_turn_are_no_fault(clock: Clock) -> None:
    """A busy server commits all the time, and each of its items waits for long."""
    health = WriterHealth()
    for _ in range(20):
        clock.now += 1
        health.last = clock.committed(1)
        assert health.fault(60) is None


def test_a_probing_write_ends_a_fault(clock: Clock) -> None:
    health = WriterHealth()
    health.failed(clock.now, FULL)
    began = clock.now = clock.now + 1
    health.probed(began, FULL)
    assert health.fault(0) is FULL
    began = clock.now
    clock.now += SLOW
    health.probed(began, None)
    assert health.fault(0) is not None
    health.probed(clock.now, None)
    assert health.fault(0) is None


@pytest.mark.parametrize("error", [None, FULL])
def test_a_batch_that_ends_during_a_probing_write_counts(
    clock: Clock, error: DatabaseUnavailableError | None
) -> None:
    """A probing write on a dead connection may end minutes after batches succeed again."""
    times = count(clock.now)
    health = WriterHealth()
    began = next(times)
    clock.now = next(times)
    if error is None:
        health.failed(clock.now, FULL)
    else:
        health.last = clock.committed(0.01)
    before = health.fault(0)
    clock.now = next(times)
    health.probed(began, error)
    assert health.fault(0) is before


def test_an_outage_lasts_from_the_first_failure_on(clock: Clock) -> None:
    health = WriterHealth()
    assert health.outage_seconds(0) == 0
    health.failed(clock.now, FULL)
    clock.now += 10
    assert health.outage_seconds(0) == 10
    health.failed(clock.now, FULL)
    clock.now += 5
    assert health.outage_seconds(0) == 15
    health.last = clock.committed(0.01)
    assert health.outage_seconds(0) == 0
    health.failed(clock.now, FULL)
    clock.now += 2
    assert health.outage_seconds(0) == 2


def test_an_outage_may_be_a_write_that_hangs(clock: Clock) -> None:
    health = WriterHealth()
    health.last = clock.committed(0.01)
    clock.now += 60
    assert health.outage_seconds(20) == 20
    assert health.outage_seconds(1) == 0
