"""Counters, gauges and histograms that all processes of a server keep in memory they share.

A process that serves has a sheet of numbers of its own, and adds to it: that costs a tenth of a
microsecond, no lock and no system call. Whoever is asked for the figures adds up all sheets, so the
answer is the same whichever process gives it. A process that is killed leaves its sheet behind; the
one that takes its place goes on with it, so that no counter ever falls.

The memory is an unlinked file that only these processes reach; nothing is left of it at the end.
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

_SPARE_SHEETS = 4  # for processes that died and were not seen to be dead yet
_LOCK_SECONDS = 5.0
_OWNER = 0  # the place of the process's id in a sheet

_spawning = multiprocessing.get_context("spawn")
_log = logging.getLogger(__name__)


class SlotAllocator:
    """Gives out places in a sheet; each process lays its instruments out in the same order."""

    def __init__(self) -> None:
        self.size = _OWNER + 1

    def take(self, places: int) -> int:
        """Return the first of so many places."""
        first = self.size
        self.size += places
        return first


class SharedCounters:
    """The shared numbers: a sheet a process, each of 64-bit integers."""

    def __init__(self, processes: int, size: int) -> None:
        self._size = size
        self._count = processes + (_SPARE_SHEETS if processes > 1 else 0)
        self._numbers = RawArray("q", self._count * size)
        self._taking = _spawning.Lock()

    def take_one(self) -> memoryview:
        """Return a sheet for this process alone, in place of a dead one if there is one."""
        sheets = self.all()
        taken = self._taking.acquire(timeout=_LOCK_SECONDS)  # whoever held it may have been killed
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
        """Return every sheet, in use or not."""
        numbers = memoryview(self._numbers).cast("B").cast("q")
        return [numbers[n * self._size : (n + 1) * self._size] for n in range(self._count)]

    def alive(self) -> list[memoryview]:
        """Return the sheets of processes that run."""
        return [sheet for sheet in self.all() if _is_alive(sheet[_OWNER])]


class Counter:
    """Counts by the values of its labels, all of which are known beforehand.

    Each value is counted by one thread only, or under a lock: adding is no single step.
    """

    def __init__(self, layout: SlotAllocator, labels: Iterable[Labels]) -> None:
        self.place = {each: layout.take(1) for each in labels}

    def add(self, sheet: memoryview, labels: Labels, amount: int = 1) -> None:
        """Count."""
        sheet[self.place[labels]] += amount

    def total(self, sheets: Iterable[memoryview]) -> dict[Labels, int]:
        """Add up sheets."""
        sheets = list(sheets)
        return {each: sum(s[place] for s in sheets) for each, place in self.place.items()}


class Gauge:
    """A number that rises and falls. Of processes that have died it says nothing."""

    def __init__(self, layout: SlotAllocator) -> None:
        self._place = layout.take(1)

    def set(self, sheet: memoryview, value: int) -> None:
        """Say what it is now."""
        sheet[self._place] = value

    def total(self, alive: Iterable[memoryview]) -> int:
        """Add up the sheets of processes that run."""
        return sum(sheet[self._place] for sheet in alive)


class Histogram:
    """Counts amounts by upper bounds, and sums them up. One thread observes.

    Amounts are integers: nanoseconds, or how many.
    """

    def __init__(self, layout: SlotAllocator, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self._first = layout.take(len(bounds) + 2)
        self._sum = self._first + len(bounds) + 1

    def observe(self, sheet: memoryview, amount: int) -> None:
        """Count an amount; one that is a bound belongs below it."""
        sheet[self._first + bisect_left(self.bounds, amount)] += 1
        sheet[self._sum] += amount

    def total(self, sheets: Iterable[memoryview]) -> tuple[list[int], int]:
        """Return how many amounts were at or below each bound, and at last all; and their sum."""
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
    except PermissionError:
        return True
    return True
