"""Counters, gauges and histograms in shared memory of all processes of a server.

Each process has its own row of 64-bit integers and is the only one that writes to it. Counting
costs a tenth of a microsecond, without a lock or a system call. A reader adds up all rows, so every
process returns the same totals. The row of a killed process stays, and the
process that replaces it continues on it, so no counter ever falls.

Memory layout (64-bit integers; the memory is an unlinked file that only these processes can reach):

    row 0: | process id | slots of the first instrument | slots of the second | ...
    row 1: | process id | ...

    a counter    one slot for each combination of label values, in the order given
    a gauge      one slot
    a histogram  one slot for each bucket (not cumulative), one for amounts above the last bound,
                 one for the sum of all amounts

The slots of an instrument follow from the order in which instruments are created (`SlotAllocator`).
All processes import the same module, which creates them in the same order, so the slots agree.
`authority.server_metrics` and `web.middleware.request_metrics` each have such a layout and memory.
"""

import logging
import multiprocessing
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from multiprocessing.sharedctypes import RawArray
from typing import TypeAlias

from birthmark_sma.runtime.metrics import Metric

Labels: TypeAlias = tuple[str, ...]
Rows: TypeAlias = Sequence[memoryview]

_SPARE_ROWS = 4  # for new processes that start before a dead one is detected
_LOCK_SECONDS = 5.0
_OWNER = 0  # the place of the process id in a row; 0 there means that the row is free

_spawning = multiprocessing.get_context("spawn")
_log = logging.getLogger(__name__)


class SlotAllocator:
    """Allocates places in a row. Each process must allocate its instruments in the same order."""

    def __init__(self) -> None:
        self.size = _OWNER + 1
        self.instruments: dict[Metric, list[Counter | Gauge | Histogram]] = {}

    def register(
        self, metric: Metric, instrument: "Counter | Gauge | Histogram", places: int
    ) -> int:
        """Allocate `places` adjacent places for an instrument of a metric; return the first."""
        self.instruments.setdefault(metric, []).append(instrument)
        first = self.size
        self.size += places
        return first


class SharedCounters:
    """The shared memory: one row of `size` 64-bit integers for each process, and 4 spare ones.

    Created in the parent process and inherited by the serving processes.
    """

    def __init__(self, processes: int, size: int) -> None:
        self._size = size
        self._count = processes + (_SPARE_ROWS if processes > 1 else 0)
        self._numbers = RawArray("q", self._count * size)
        self._taking = _spawning.Lock()

    def take_one(self) -> memoryview:
        """Return a row for this process alone: a free one, or that of a process that has died.

        If none is left, a warning is logged and the row returned is private memory: its numbers
        are missing in the totals.
        """
        shared_counters = self.all()
        # With a timeout, because a process that was killed may never release the lock.
        taken = self._taking.acquire(timeout=_LOCK_SECONDS)
        try:
            free = find_free(own_counters[_OWNER] for own_counters in shared_counters)
            if free is not None:
                shared_counters[free][_OWNER] = os.getpid()
                return shared_counters[free]
        finally:
            if taken:
                self._taking.release()
        _log.warning("there is no counter row left for this process: /metrics lacks its numbers")
        return memoryview(bytearray(8 * self._size)).cast("q")

    def all(self) -> list[memoryview]:
        """Return all rows, in use or not."""
        numbers = memoryview(self._numbers).cast("B").cast("q")
        return [numbers[n * self._size : (n + 1) * self._size] for n in range(self._count)]

    def alive(self) -> list[memoryview]:
        """Return the rows of running processes."""
        return [own_counters for own_counters in self.all() if is_alive(own_counters[_OWNER])]


class Counter:
    """A counter for each combination of label values. All combinations are given in advance.

    Only one thread may add to a value, or callers must hold a lock: adding is not atomic.
    """

    def __init__(
        self, layout: SlotAllocator, metric: Metric, labels: Sequence[Labels] = ((),)
    ) -> None:
        first = layout.register(metric, self, len(labels))
        self.place = {each: first + number for number, each in enumerate(labels)}

    def add(self, own_counters: memoryview, labels: Labels, amount: int = 1) -> None:
        """Add to the counter of these labels. Raises KeyError for labels not given in advance."""
        own_counters[self.place[labels]] += amount

    def total(self, shared_counters: Rows) -> dict[Labels, int]:
        """Return the sum over the rows for each combination of label values."""
        return {each: sum(s[place] for s in shared_counters) for each, place in self.place.items()}


class Gauge:
    """A number that rises and falls. The values of dead processes are not counted.

    The total of all processes is their sum, with `highest` the highest of them, or with `lowest`
    the lowest that is not 0.
    """

    def __init__(
        self,
        layout: SlotAllocator,
        metric: Metric,
        labels: Labels = (),
        *,
        highest: bool = False,
        lowest: bool = False,
    ) -> None:
        self.labels = labels
        self._combine: Callable[[Iterable[int]], int] = (
            max if highest else _lowest if lowest else sum
        )
        self._place = layout.register(metric, self, 1)

    def set(self, own_counters: memoryview, value: int) -> None:
        """Set the value of this process."""
        own_counters[self._place] = value

    def total(self, alive: Rows) -> int:
        """Return the sum, or the highest or lowest value, of the rows of running processes."""
        return self._combine(own_counters[self._place] for own_counters in alive)


class Histogram:
    """A histogram for one combination of label values: buckets, and the sum of all amounts.

    Amounts are integers: nanoseconds or numbers of items. Only one thread of a process may observe.
    """

    def __init__(
        self, layout: SlotAllocator, metric: Metric, bounds: Sequence[int], labels: Labels = ()
    ) -> None:
        self.bounds = bounds
        self.labels = labels
        self._first = layout.register(metric, self, len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1

    def observe(self, own_counters: memoryview, amount: int) -> None:
        """Count an amount. An amount equal to a bound belongs to the bucket below it."""
        own_counters[self._first + bisect_left(self.bounds, amount)] += 1
        own_counters[self._sum] += amount

    def total(self, shared_counters: Rows) -> tuple[list[int], int]:
        """Return the cumulative counts and the sum of all amounts, over these rows.

        The counts are the number of amounts at or below each bound, and at the end of all amounts.
        """
        counts = (sum(s[n] for s in shared_counters) for n in range(self._first, self._sum))
        return list(accumulate(counts)), sum(s[self._sum] for s in shared_counters)


def _lowest(values: Iterable[int]) -> int:
    return min(filter(None, values), default=0)


def find_free(owners: Iterable[int]) -> int | None:
    """Return the first place that is free, because its owner has died; None if there is none.

    `owners` are process ids in the order of the places, 0 for no owner.
    """
    return next((place for place, each in enumerate(owners) if not is_alive(each)), None)


def is_alive(process: int) -> bool:
    """Return True if there is a process with this id; 0 is none."""
    if not process:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        return True
    return True
