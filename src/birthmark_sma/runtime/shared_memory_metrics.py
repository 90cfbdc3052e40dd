"""Counters, gauges and histograms in shared memory of all processes of a server.

Each process has its own sheet (a row of 64-bit integers) and is the only one that writes to it. So
to count costs a tenth of a microsecond, without a lock or a system call. A reader adds up all
sheets, so every process returns the same totals. The sheet of a killed process stays, and the
process that replaces it continues on it, so no counter ever falls.

Memory layout of a sheet: the process id, then the places of each instrument in the order of their
creation (`SlotAllocator`). All processes create them in the same order. The memory is an unlinked
file that only these processes can reach; nothing is left of it at the end.
`authority.server_metrics` and `web.middleware.request_metrics` define the instruments.
"""

import logging
import multiprocessing
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from multiprocessing.sharedctypes import RawArray
from typing import TypeAlias

Labels: TypeAlias = tuple[str, ...]

_SPARE_SHEETS = 4  # for new processes that start before a dead one is detected
_LOCK_SECONDS = 5.0
_OWNER = 0  # the place of the process id in a sheet; 0 there means that the sheet is free

_spawning = multiprocessing.get_context("spawn")
_log = logging.getLogger(__name__)


class SlotAllocator:
    """Allocates places in a sheet. Each process must allocate its instruments in the same order."""

    def __init__(self) -> None:
        self.size = _OWNER + 1

    def take(self, places: int) -> int:
        """Allocate `places` adjacent places; return the first."""
        first = self.size
        self.size += places
        return first


class SharedCounters:
    """The shared memory: one sheet of `size` 64-bit integers for each process, and 4 spare ones.

    Created in the parent process and inherited by the serving processes.
    """

    def __init__(self, processes: int, size: int) -> None:
        self._size = size
        self._count = processes + (_SPARE_SHEETS if processes > 1 else 0)
        self._numbers = RawArray("q", self._count * size)
        self._taking = _spawning.Lock()

    def take_one(self) -> memoryview:
        """Return a sheet for this process alone: a free one, or that of a process that has died.

        If none is left, a warning is logged and the sheet returned is private memory: its numbers
        are missing in the totals.
        """
        sheets = self.all()
        # With a timeout, because a process that was killed may never release the lock.
        taken = self._taking.acquire(timeout=_LOCK_SECONDS)
        try:
            for sheet in sheets:
                if not _is_alive(sheet[_OWNER]):
                    sheet[_OWNER] = os.getpid()
                    return sheet
        finally:
            if taken:
                self._taking.release()
        _log.warning("this process is one too many: /metrics will lack what it does")
        return memoryview(bytearray(8 * self._size)).cast("q")

    def all(self) -> list[memoryview]:
        """Return all sheets, in use or not."""
        numbers = memoryview(self._numbers).cast("B").cast("q")
        return [numbers[n * self._size : (n + 1) * self._size] for n in range(self._count)]

    def alive(self) -> list[memoryview]:
        """Return the sheets of running processes."""
        return [sheet for sheet in self.all() if _is_alive(sheet[_OWNER])]


class Counter:
    """A counter for each value of its labels. All values are given in advance.

    Only one thread may add to a value, or callers must hold a lock: adding is not atomic.
    """

    def __init__(self, layout: SlotAllocator, labels: Iterable[Labels]) -> None:
        self.place = {each: layout.take(1) for each in labels}

    def add(self, sheet: memoryview, labels: Labels, amount: int = 1) -> None:
        """Add to the counter of these labels. Raises KeyError for labels not given in advance."""
        sheet[self.place[labels]] += amount

    def total(self, sheets: Iterable[memoryview]) -> dict[Labels, int]:
        """Return the sum over the sheets for each value of the labels."""
        sheets = list(sheets)
        return {each: sum(s[place] for s in sheets) for each, place in self.place.items()}


class Gauge:
    """A number that rises and falls. The values of dead processes are not counted."""

    def __init__(self, layout: SlotAllocator) -> None:
        self._place = layout.take(1)

    def set(self, sheet: memoryview, value: int) -> None:
        """Set the value of this process."""
        sheet[self._place] = value

    def total(self, alive: Iterable[memoryview]) -> int:
        """Return the sum over the sheets of running processes."""
        return sum(sheet[self._place] for sheet in alive)


class Histogram:
    """A histogram of amounts, with upper bounds of its buckets and the sum of all amounts.

    Amounts are integers: nanoseconds or numbers of items. Only one thread of a process may observe.
    """

    def __init__(self, layout: SlotAllocator, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        # One place for each bucket, one for amounts above the last bound, one for the sum.
        self._first = layout.take(len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1

    def observe(self, sheet: memoryview, amount: int) -> None:
        """Count an amount. An amount equal to a bound belongs to the bucket below it."""
        sheet[self._first + bisect_left(self.bounds, amount)] += 1
        sheet[self._sum] += amount

    def total(self, sheets: Iterable[memoryview]) -> tuple[list[int], int]:
        """Return the cumulative counts and the sum of all amounts, over these sheets.

        The counts are the number of amounts at or below each bound, and at the end of all amounts.
        """
        sheets = list(sheets)
        counts = (sum(s[n] for s in sheets) for n in range(self._first, self._sum))
        return list(accumulate(counts)), sum(s[self._sum] for s in sheets)


def _is_alive(process: int) -> bool:
    if not process:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        return True
    return True
