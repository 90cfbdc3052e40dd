"""Memory in which the processes of one server count the units of callers together.

`shared_store` counts in it; `web.server` creates it, and the serving processes inherit it. It needs
no lock to count: each process adds to cells of its own, and a reader adds up the cells of all. So a
killed process leaves nothing locked, and what it counted stays counted until its window is over.

The memory has slots, one for each caller and rate, in buckets of `_WAYS`. A slot has a head, and a
row of cells for each process (64-bit integers):

    head   the hash of the name (0: free) | start of window 0, and last use, in nanoseconds
           | 1 if any units were added
    cells  number of the window | units in the one before it | units in it | reserved | by whom

A new name takes a free slot of its bucket, or the one that was unused for longest. The hash has a
random key, so that nobody can choose names that share a bucket.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from birthmark_sma.authority.rate_limits.store import Usage
from birthmark_sma.runtime.shared_memory_metrics import find_free

_SLOTS = 1 << 15  # of all limits together; their memory is used only once they are
_WAYS = 8
_SPARE_ROWS = 4  # for new processes that start before a dead one is detected
_HASH, _START, _USED, _COUNTED = range(4)
_HEAD = 4
_WINDOW, _BEFORE, _IN_IT, _RESERVED, _BY = range(5)
_CELLS = 5


class SharedWindows:
    """The memory. Each process must call `join` before it counts.

    It can be passed to a process that multiprocessing starts. Safe from any thread, but only one
    thread of a process may count under one name.
    """

    def __init__(self, processes: int) -> None:
        self._open(_make_file(), processes + _SPARE_ROWS, secrets.token_bytes(16))
        os.ftruncate(self._file, self._size())
        self._map()

    def __reduce__(self) -> tuple[Callable[..., "SharedWindows"], tuple[Any, ...]]:
        return _inherit, (reduction.DupFd(self._file), self._rows, self._key)

    @classmethod
    def of_file(cls, file: int, rows: int, key: bytes) -> "SharedWindows":
        """Return the memory in a file that another process has created."""
        made = cls.__new__(cls)
        made._open(file, rows, key)
        made._map()
        return made

    def join(self) -> None:
        """Take a row for this process: a free one, or that of a process that has died."""
        with self._exclusively():
            self._row = find_free(self._numbers[: self._rows]) or 0
            self._numbers[self._row] = self._me = os.getpid()

    def find(self, name: str, now: int, *, create: bool) -> int | None:
        """Return the place of the slot with this name; None if there is none.

        With `create`, a missing slot is created, and its first window begins at `now`.
        """
        number = int.from_bytes(
            hashlib.blake2b(name.encode(), digest_size=8, key=self._key).digest(), signed=True
        )
        bucket = self._rows + number % (_SLOTS // _WAYS) * _WAYS * self._slot
        places = range(bucket, bucket + _WAYS * self._slot, self._slot)
        for place in places:
            if self._numbers[place] == number:
                return place
        return self._take_slot(places, number, now) if create else None

    def is_named(self, place: int, name_hash: int) -> bool:
        """Return whether a slot still belongs to the name that had this hash."""
        return self._numbers[place] == name_hash

    def hash_at(self, place: int) -> int:
        """Return the hash of the name of a slot."""
        return self._numbers[place]

    def add(self, place: int, units: int, seconds: int, now: int) -> None:
        """Add units, which may be negative, to the cells of this process in the current window."""
        numbers = self._numbers
        cell = place + _HEAD + self._row * _CELLS
        window = _age(now, numbers[place + _START]) // (seconds * 10**9)
        if numbers[cell] != window:
            follows = numbers[cell] == window - 1
            numbers[cell + _BEFORE] = numbers[cell + _IN_IT] if follows else 0
            numbers[cell + _IN_IT] = 0
            numbers[cell] = window
        added = numbers[cell + _IN_IT] + units
        numbers[cell + _IN_IT] = max(0, added)
        numbers[place + _USED] = now
        numbers[place + _COUNTED] = 1

    def counted(self, place: int) -> bool:
        """Return whether any process has added units in this slot."""
        return self._numbers[place + _COUNTED] != 0

    def reserve(self, place: int, units: int) -> None:
        """Set how many units this process has reserved."""
        cell = place + _HEAD + self._row * _CELLS
        self._numbers[cell + _BY] = self._me
        self._numbers[cell + _RESERVED] = units

    def read(self, place: int, seconds: int, now: int) -> Usage:
        """Return the units that all processes have counted in this slot.

        Another process may have read the clock later than `now`, and count in the next window
        already. Its units of this window count all the same.
        """
        slot = self._numbers[place : place + self._slot].tolist()
        length = seconds * 10**9
        window, since = divmod(_age(now, slot[_START]), length)
        previous = current = 0
        cells = slot[_HEAD + _WINDOW :: _CELLS], slot[_HEAD + _BEFORE :: _CELLS]
        # Without `strict`, which is slow: this runs for each camera token.
        for number, before, in_it in zip(*cells, slot[_HEAD + _IN_IT :: _CELLS]):  # noqa: B905
            if number == window:
                previous += before
                current += in_it
            elif number == window - 1:
                previous += in_it
            elif number == window + 1:
                current += before
        return Usage(previous, current, (length - since) / 10**9)

    def reserved_by_others(self, place: int) -> int:
        """Return the units that other processes have reserved in this slot."""
        slot = self._numbers[place : place + self._slot].tolist()
        cells = slot[_HEAD + _RESERVED :: _CELLS], slot[_HEAD + _BY :: _CELLS]
        return sum(
            units
            for row, (units, by) in enumerate(zip(*cells, strict=True))
            # A killed process reserves nothing: its row has another owner then.
            if units and row != self._row and by == self._numbers[row]
        )

    def _take_slot(self, places: range, number: int, now: int) -> int:
        numbers = self._numbers
        with self._exclusively():
            for place in places:  # another process may have created it meanwhile
                if numbers[place] == number:
                    return place
            # A free slot was never used, so it is the one that was unused for longest.
            place = min(places, key=lambda each: numbers[each + _USED])
            numbers[place + _HASH] = 0
            for at in range(place + 1, place + self._slot):
                numbers[at] = 0
            numbers[place + _START] = numbers[place + _USED] = now
            numbers[place + _HASH] = number  # last: from now on, others find it
        return place

    def _exclusively(self) -> "_FileLock":
        return _FileLock(self._file, self._threads)

    def _open(self, file: int, rows: int, key: bytes) -> None:
        self._file, self._rows, self._key = file, rows, key
        self._slot = _HEAD + rows * _CELLS
        self._threads = threading.Lock()
        self._row = self._me = 0

    def _size(self) -> int:
        return 8 * (self._rows + _SLOTS * self._slot)

    def _map(self) -> None:
        self._numbers = memoryview(mmap.mmap(self._file, self._size())).cast("q")


class _FileLock:
    """A lock that no other thread or process holds at the same time.

    The kernel releases it when a process ends. It belongs to a process, hence the lock of threads.
    """

    def __init__(self, file: int, threads: threading.Lock) -> None:
        self._file = file
        self._threads = threads

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()


def _age(now: int, start: int) -> int:
    """Return the time since the start of a slot.

    It is 0 if another process has created the slot after this one read the clock.
    """
    return now - start if now > start else 0


def _inherit(file: Any, rows: int, key: bytes) -> SharedWindows:
    return SharedWindows.of_file(file.detach(), rows, key)


def _make_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rate-limits")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
