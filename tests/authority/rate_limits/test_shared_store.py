"""Processes of one server that count in one memory: together exactly as much as one alone."""

import multiprocessing
import os
from itertools import cycle, islice
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.rate_limits import shared_windows
from birthmark_sma.authority.rate_limits.memory_store import MemoryStore
from birthmark_sma.authority.rate_limits.shared_store import SharedStore
from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.authority.rate_limits.store import UNUSED
from birthmark_sma.rates import parse_rates
from birthmark_sma.runtime import shared_memory_metrics

SPAWNING = multiprocessing.get_context("spawn")
# Pauses in eighths of a second, which are exact: a rounding must not make the difference.
STEPS = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 12)), min_size=1, max_size=40)


class Processes:
    """The stores of some processes, all in this one, at times that a test names."""

    def __init__(
        self, rates: str, count: int = 2, kind: str = "validate", *, has_burst: bool = False
    ) -> None:
        self.now = 1_000.0
        first = SharedWindows(count)
        self.windows = [first]
        for _ in range(count - 1):
            again = SharedWindows.of_file(os.dup(first._file), first._rows, first._key)
            self.windows.append(again)
        for each in self.windows:
            each.join()
        parsed = parse_rates(rates)
        self.stores = [
            SharedStore(kind, parsed, windows, lambda: self.now, has_burst=has_burst)
            for windows in self.windows
        ]


@given(amount=st.integers(1, 10), seconds=st.integers(1, 10), has_burst=st.booleans(), steps=STEPS)
def test_two_processes_decide_as_one(
    amount: int, seconds: int, steps: list[tuple[int, int]], *, has_burst: bool
) -> None:
    """In turn, they decide as one process that got all requests, as long as its windows go on."""
    text = f"{amount}/{seconds} seconds"
    processes = Processes(text, has_burst=has_burst)
    alone = MemoryStore(parse_rates(text), lambda: processes.now, has_burst=has_burst)
    stores = cycle(processes.stores)
    for store, (pause, cost) in zip(stores, steps, strict=False):
        # After two windows without a request, memory begins a new one at that moment.
        processes.now += min(pause / 8, seconds * 7 / 8)
        left, block = alone.take("who", cost)
        assert store.take("who", cost)[1] == block
        if block is None:
            assert next(stores).left("who") == alone.left("who")
        assert left


def test_several_rates_are_taken_together() -> None:
    """If one of them refuses, nothing is taken from the others."""
    first, second = (processes := Processes("2/second; 3/minute")).stores
    assert first.take("a", 1)[1] is None
    assert second.take("a", 1)[1] is None
    left, block = first.take("a", 1)
    assert block is not None
    assert block.number == 0
    assert [units for units, _ in left] == [0, 1]
    processes.now += 2
    assert second.take("a", 1)[1] is None
    left, block = second.take("a", 1)
    assert block is not None
    assert block.number == 1
    first.give_back("a", 0)
    assert [units for units, _ in first.left("b")] == [2, 3]
    assert first.usage("b") == (UNUSED, UNUSED)


def test_what_is_given_back_can_be_taken_again() -> None:
    """`give_back` is called by the process that took it."""
    first, second = Processes("5/minute").stores
    assert first.take("a", 4)[1] is None
    assert second.take("a", 2)[1] is not None
    first.give_back("a", 4)
    assert second.take("a", 5)[1] is None


def test_what_one_counts_blocks_the_others() -> None:
    """FAILs and wrong credentials are counted after the fact, up to the limit."""
    first, second = Processes("5/minute", kind="failures").stores
    assert not second.knows("a")
    first.count("a", 3)
    assert second.knows("a")
    assert second.blocked("a") is None
    second.count("a", 7)
    assert first.blocked("a") is not None
    assert first.usage("a")[0].current == 5
    assert first.blocked("b") is None
    assert not first.knows("b")


def test_processes_reserve_what_may_still_fail() -> None:
    """Threat 36: no process uses what another may need; but none refuses because of that alone."""
    first, second = Processes("10/minute", kind="failures").stores
    assert first.reserve("a", 0, 6) == 10
    assert second.reserve("a", 0, 100) == 4
    assert first.reserve("a", 2, 100) == 4  # of 10, 2 are used and 4 are the other's
    assert second.reserve("a", 4, 1) == 1  # 4 are used, and the other may need all others
    first.count("a", 2)
    second.count("a", 4)
    first.release_all()
    second.release_all()
    assert first.reserve("a", 0, 1) == 4
    second.count("a", 4)
    assert first.reserve("a", 0, 1) == 0


def test_a_clock_that_was_read_before_the_slot_was_created() -> None:
    """Two processes meet a new caller at once. What the one counts, the other sees."""
    processes = Processes("2/second")
    first, second = processes.stores
    assert first.take("a", 1)[1] is None
    processes.now -= 0.001
    assert second.take("a", 1)[1] is None
    assert first.take("a", 1)[1] is not None
    processes.now += 0.002
    assert second.take("a", 1)[1] is not None


def test_a_clock_that_was_read_before_a_window_began() -> None:
    """One process is in the next window already. Its units of this window still count."""
    processes = Processes("2/second")
    first, second = processes.stores
    assert first.take("a", 2)[1] is None
    processes.now += 1.0
    assert first.take("a", 1)[1] is not None
    processes.now -= 0.001
    assert second.take("a", 1)[1] is not None


def test_a_killed_process_reserves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that replaces it takes its place. What it counted stays counted."""
    processes = Processes("10/minute")
    killed, other = processes.stores
    assert killed.take("a", 3)[1] is None
    killed.reserve("a", 0, 10)
    assert other.reserve("a", 0, 1) == 1
    monkeypatch.setattr(shared_memory_metrics, "is_alive", lambda process: process == -1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    processes.windows[0].join()
    assert other.reserve("a", 0, 1) == 7


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of callers that share a bucket, the one that was away for longest is forgotten."""
    monkeypatch.setattr(shared_windows, "_SLOTS", shared_windows._WAYS)
    processes = Processes("10/minute")
    first, second = processes.stores
    names = [f"caller {number}" for number in range(shared_windows._WAYS + 1)]
    for name in names:
        processes.now += 0.001
        assert first.take(name, 4)[1] is None
    assert second.usage(names[0]) == (UNUSED,)
    assert first.usage(names[0]) == (UNUSED,)  # although it remembers where it was
    assert [second.usage(name)[0].current for name in names[1:]] == [4] * shared_windows._WAYS
    assert first.take(names[0], 10)[1] is None
    assert second.usage(names[1]) == (UNUSED,)


def _take_all(windows: SharedWindows, granted: "Synchronized[int]", go: Any, who: str) -> None:
    windows.join()
    store = SharedStore("validate", parse_rates("3000/hour"), windows)
    go.wait(60)
    taken = sum(store.take(who, 1)[1] is None for _ in range(2_500))
    with granted.get_lock():
        granted.value += taken


@pytest.fixture
def granted() -> "Synchronized[int]":
    """A number that processes share."""
    return SPAWNING.Value("i", 0)


def test_processes_at_once_never_exceed_the_limit(granted: "Synchronized[int]") -> None:
    """Real processes: never more than the limit, and all of it once they are done."""
    windows, go = SharedWindows(2), SPAWNING.Barrier(2)
    workers = [
        SPAWNING.Process(target=_take_all, args=(windows, granted, go, "who")) for _ in range(2)
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
        assert each.exitcode == 0
    # Two that ask at the same moment for the last one may both be refused. It is left then.
    windows.join()
    store = SharedStore("validate", parse_rates("3000/hour"), windows)
    rest = sum(store.take("who", 1)[1] is None for _ in islice(range(10), 10))
    assert granted.value + rest == 3_000
