"""Sliding windows in memory: never more than allowed, and a bound on what is remembered."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.rate_limits.memory_store import MemoryStore
from birthmark_sma.authority.rate_limits.store import (
    MOST_CALLERS,
    UNUSED,
    Left,
    Usage,
    left_of,
    remaining,
    seconds_until,
)
from birthmark_sma.rates import Rate, parse_rates

STEPS = st.lists(
    st.tuples(st.floats(0, 15, allow_nan=False), st.integers(1, 12)), min_size=1, max_size=60
)


class Windows:
    """The store of one rate, at times that a test names."""

    def __init__(self, rate: Rate, most_callers: int = MOST_CALLERS) -> None:
        self.rate = rate
        self.now = 0.0
        self.store = MemoryStore((rate,), lambda: self.now, most_callers)

    def take(self, who: str, cost: int, now: float) -> Left | None:
        """What is left after a request, or None if it is refused."""
        self.now = now
        (left,), block = self.store.take(who, cost)
        return left if block is None else None

    def usage(self, who: str, now: float) -> Usage:
        self.now = now
        return self.store.usage(who)[0]

    def fill(self, who: str, cost: int, now: float) -> None:
        self.now = now
        self.store.count(who, cost)


@given(amount=st.integers(1, 10), seconds=st.integers(1, 10), steps=STEPS)
def test_no_window_ever_holds_more_than_its_rate(
    amount: int, seconds: int, steps: list[tuple[float, int]]
) -> None:
    """Threat 23: whatever is asked, and whenever: the window under way holds at most the rate, and
    what is told agrees with what is done."""
    windows = Windows(Rate(amount, seconds))
    now = 1_000.0
    had: list[tuple[float, int]] = []
    for pause, cost in steps:
        now += pause
        before = windows.usage("a", now)
        taken = windows.take("a", cost, now)
        assert (taken is not None) == (cost <= remaining(windows.rate, before))
        if taken is None:
            assert windows.usage("a", now)[:2] == before[:2]
            continue
        had.append((now, cost))
        after = windows.usage("a", now)
        assert taken[0] == remaining(windows.rate, after)
        assert 1 <= taken[1] <= seconds + 1
    for start, _ in had:
        within = sum(cost for when, cost in had if start <= when < start + seconds)
        assert within <= 2 * amount  # of a span that lies across two windows
    # Over a long time the rate holds but for the first window.
    span = had[-1][0] - had[0][0] if had else 0
    assert sum(cost for _, cost in had) <= amount * (span / seconds + 2)


@given(
    rate=st.builds(Rate, st.integers(1, 50), st.integers(1, 100)),
    previous=st.integers(0, 50),
    current=st.integers(0, 50),
    elapsed=st.floats(0, 0.999),
    cost=st.integers(1, 50),
)
def test_who_waits_as_told_gets_it(
    rate: Rate, previous: int, current: int, elapsed: float, cost: int
) -> None:
    """Retry-After is never too early, and never longer than two windows."""
    amount, seconds = rate
    if previous > amount or current > amount or cost > amount:
        return
    windows = Windows(rate)
    windows.take("a", previous, 0.0)
    windows.take("a", 1, float(seconds))  # turns the page
    windows.store.give_back("a", 1)
    now = seconds + elapsed * seconds
    windows.fill("a", current, now)
    wait = seconds_until(rate, windows.usage("a", now), cost)
    assert 0 <= wait <= 2 * seconds + 1
    assert windows.take("a", cost, now + wait) is not None


def test_a_burst_at_the_edge_of_two_windows_is_one_burst() -> None:
    """Threat 23: a fixed window would let twice as many through within a moment."""
    windows = Windows(Rate(100, 60))
    assert windows.take("a", 1, 0.0)
    assert sum(windows.take("a", 1, 59.9) is not None for _ in range(200)) == 99
    assert sum(windows.take("a", 1, 60.1) is not None for _ in range(200)) <= 1
    assert sum(windows.take("a", 1, 90.0) is not None for _ in range(200)) == pytest.approx(50, 2)


def test_what_can_never_be_had_takes_a_window() -> None:
    rate = Rate(10, 60)
    assert seconds_until(rate, UNUSED, 11) == 60
    assert seconds_until(rate, UNUSED, 10) == 0
    assert seconds_until(rate, Usage(0, 10, 30.0), 1) == 31
    assert seconds_until(rate, Usage(10, 0, 60.0), 1) == 1


def test_what_was_given_back_can_be_had_again() -> None:
    windows = Windows(Rate(3, 60))
    assert windows.take("a", 3, 0.0)
    windows.store.give_back("a", 2)
    windows.store.give_back("nobody", 2)
    assert windows.take("a", 3, 0.0) is None
    assert windows.take("a", 2, 0.0) == (0, 61)


def test_what_happened_fills_no_more_than_a_window() -> None:
    """So that a thousand FAILs at once do not hold somebody back for hours."""
    windows = Windows(Rate(10, 60))
    windows.fill("a", 1_000, 0.0)
    assert windows.usage("a", 0.0) == Usage(0, 10, 60.0)
    assert windows.take("a", 10, 120.0) == (0, 61)


def test_a_question_leaves_no_trace() -> None:
    windows = Windows(Rate(10, 60))
    assert windows.usage("a", 0.0) == UNUSED
    assert len(windows.store.callers) == 0


def test_addresses_without_end_do_not_fill_the_memory() -> None:
    """Threat 23: who has many addresses is forgotten, and the server lives on."""
    windows = Windows(Rate(10, 60))
    tracemalloc.start()
    began = time.thread_time()
    for number in range(3 * MOST_CALLERS):
        windows.take(f"ip:{number:08x}", 1, number / 100_000)
    occupied, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(windows.store.callers) == MOST_CALLERS
    assert occupied < 40_000_000
    assert time.thread_time() - began < 60


def test_who_came_long_ago_is_forgotten() -> None:
    """Two for each that comes, so that what a flood left goes again."""
    windows = Windows(Rate(10, 60))
    for number in range(1_000):
        windows.take(f"old {number}", 1, 0.0)
    for number in range(600):
        windows.take(f"new {number}", 1, 200.0)
    assert len(windows.store.callers) == 600


def test_who_is_forgotten_is_the_one_who_has_been_away() -> None:
    """Somebody who keeps asking stays known while others come and go."""
    windows = Windows(Rate(1_000, 1), most_callers=10)
    for number in range(1_000):
        windows.take("busy", 1, number / 4)
        windows.take(f"passing {number}", 1, number / 4)
    assert windows.usage("busy", 249.75).current > 1
    assert len(windows.store.callers) <= 10


def test_a_refused_request_uses_up_no_rate() -> None:
    """Of several rates, whichever refuses; and the one that refuses is named."""
    store = MemoryStore(parse_rates("5/second; 3/minute"), lambda: 0.0)
    assert store.take("a", 2)[1] is None
    left, block = store.take("a", 2)
    assert block is not None
    assert block.number == 1
    assert [units for units, _ in left] == [units for units, _ in store.left("a")] == [3, 1]


def test_a_caller_is_blocked_while_nothing_is_left() -> None:
    windows = Windows(Rate(10, 60))
    assert windows.store.blocked("a") is None
    assert "a" not in windows.store.callers
    windows.fill("a", 9, 0.0)
    assert windows.store.blocked("a") is None
    windows.fill("a", 9, 0.0)
    block = windows.store.blocked("a")
    assert block is not None
    windows.now = block.wait - 1.0
    assert windows.store.blocked("a") is not None
    windows.now += 1
    assert windows.store.blocked("a") is None


def test_what_is_left_of_a_rate() -> None:
    rate = Rate(10, 60)
    assert left_of(rate, UNUSED) == (10, 0)
    assert left_of(rate, Usage(0, 10, 30.0)) == (0, seconds_until(rate, Usage(0, 10, 30.0), 1))
