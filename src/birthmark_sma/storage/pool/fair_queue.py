"""A bounded queue that callers share: each waiting call has its turn, whoever has many of them.

`pool` owns one for each writer and holds a lock around every call. This module is pure: it
has no lock, reads no clock and never waits.

The order is that of start-time fair queueing (Goyal, Vin and Cheng, 1996). A caller's next call has
a start tag: the tag of its call before, plus the items of that call. The call with the lowest tag
goes first, so callers with waiting calls get equally many items, up to the size of one call. The
first call of a caller that had none waiting has the tag of the call that was taken last, and so
goes before the backlog of others. But a caller that waits for each of its batches before it sends
the next one has none waiting either: after a long call its tag goes on where it ended.
"""

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

Call = TypeVar("Call")

SHARED = None
"""The caller of calls that share the whole queue: no part of it is kept for others."""

_RESERVE = 10  # one part in so many of the queue is for calls of one item
# A larger call is not taken together with fewer items of others: they would wait for its work.
_LONG_CALL = 64
# After so many batches, with so many times its items, the oldest call goes first, whatever its tag:
# callers without end that come with one call each would pass it by for ever.
_OLDEST_EVERY = 16
_MOST_REMEMBERED = 1_000  # callers whose last call was long
_NEWEST_WEIGHS = 0.3  # of the rate of the newest batch, in the average


class _Caller(Generic[Call]):
    """The waiting calls of one caller; there is at least one."""

    __slots__ = ("calls", "items", "name")

    def __init__(self, name: str | None) -> None:
        self.name = name
        # The number of its arrival, its items, and the call: tuples, as one is made for each token.
        self.calls: deque[tuple[int, int, Call]] = deque()
        self.items = 0


class FairQueue(Generic[Call]):
    """Calls of one or more items each, by caller. `limit` is the number of items that may wait.

    A call is accepted while its caller has less than its share, so the items of the last call may
    exceed it. The share is what is left free: a caller alone gets half of the queue, the next one
    half of the rest. A tenth of the queue is free for calls of one item.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserve = limit // _RESERVE
        self._callers: dict[str | None, _Caller[Call]] = {}
        self._reserved: dict[str | None, int] = {}  # items of calls that are being read
        self._turns: list[tuple[int, int, _Caller[Call]]] = []  # a heap: start tag, number, caller
        self._ends: dict[str | None, int] = {}  # of the last long calls: tag and items
        self._number = 0
        self._tag = 0  # of the call that was taken last
        self._occupied = 0  # items that wait or are reserved
        self.waiting = 0
        """The number of items that wait."""
        # Kept until a call is taken: in an outage, each 503 asks for it, and callers are many.
        self._oldest: Call | None = None
        self._batches = 0
        self._passed_by = 0  # items that were taken since the oldest call went first
        self._began = 0.0  # the last batch: its time, its items, and whether more waited
        self._taken = 0
        self._was_behind = False
        self._rate = 0.0

    def __bool__(self) -> bool:
        """Return True if a call waits."""
        return bool(self._turns)

    def has_room(self, name: str | None, *, single: bool) -> bool:
        """Return True if a caller may add a call now. `single` means a call of one item."""
        free = self._limit - self._occupied
        if name is SHARED:
            return free > 0
        if not single:
            free -= self._reserve
        caller = self._callers.get(name)
        own = 0 if caller is None else caller.items
        if self._reserved:
            own += self._reserved.get(name, 0)
        return own < free

    def reserve(self, name: str | None, items: int) -> None:
        """Count items of a call that is still being read."""
        self._reserved[name] = self._reserved.get(name, 0) + items
        self._occupied += items

    def release(self, name: str | None, items: int) -> None:
        """Give a reservation back."""
        self._occupied -= items
        left = self._reserved[name] - items
        if left:
            self._reserved[name] = left
        else:
            del self._reserved[name]

    def add(self, name: str | None, call: Call, items: int) -> None:
        """Add a call. The queue does not check that there is room."""
        self._number += 1
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(name)
            tag = max(self._tag, self._ends.pop(name, 0)) if self._ends else self._tag
            heappush(self._turns, (tag, self._number, caller))
        caller.calls.append((self._number, items, call))
        caller.items += items
        self._occupied += items
        self.waiting += items

    def take(self, limit: int, now: float) -> list[Call]:
        """Remove and return the calls of the next batch, of up to `limit` items.

        The items of one call stay together, so the last call may exceed the limit. `now` is the
        time in seconds of any clock that never goes back.
        """
        self._measure(now)
        self._oldest = None
        batch: list[Call] = []
        taken = 0
        self._batches += 1
        if self._batches % _OLDEST_EVERY == 0 and len(self._turns) > 1:
            taken += self._take_oldest(batch)
        turns = self._turns
        while turns and taken < limit:
            tag, _, caller = turns[0]
            calls = caller.calls
            items = calls[0][1]
            if items > _LONG_CALL and items > taken > 0:
                break
            batch.append(calls.popleft()[2])
            taken += items
            caller.items -= items
            self._tag = tag
            if calls:
                self._number += 1
                heapreplace(turns, (tag + items, self._number, caller))
            else:
                heappop(turns)
                self._forget(caller, tag, items)
        self._passed_by += taken
        self._occupied -= taken
        self.waiting -= taken
        self._taken, self._was_behind = taken, bool(turns)
        return batch

    def oldest(self) -> Call | None:
        """Return the call that has waited longest, or None."""
        if self._oldest is None and self._callers:
            # No two arrivals are equal, so the calls themselves are never compared.
            self._oldest = min(caller.calls[0] for caller in self._callers.values())[2]
        return self._oldest

    @property
    def drain_seconds(self) -> float:
        """The time after which all waiting items are taken, at the present rate; 0 if unknown."""
        return self._occupied / self._rate if self._rate else 0.0

    def _take_oldest(self, batch: list[Call]) -> int:
        """Take the call that has waited longest, if it is its turn; return the number of items."""
        place, (tag, number, caller) = min(
            enumerate(self._turns), key=lambda turn: turn[1][2].calls[0][0]
        )
        _, items, call = caller.calls[0]
        if self._passed_by < items * _OLDEST_EVERY:
            return 0
        self._passed_by = 0
        caller.calls.popleft()
        batch.append(call)
        caller.items -= items
        if caller.calls:
            self._turns[place] = (tag + items, number, caller)
        else:
            self._turns[place] = self._turns[-1]
            self._turns.pop()
            self._forget(caller, tag, items)
        heapify(self._turns)
        return items

    def _forget(self, caller: _Caller[Call], tag: int, items: int) -> None:
        """Remove a caller after its last call, which had this tag and so many items."""
        del self._callers[caller.name]
        if items > _LONG_CALL:
            self._ends[caller.name] = tag + items
            if len(self._ends) > _MOST_REMEMBERED:
                del self._ends[next(iter(self._ends))]

    def _measure(self, now: float) -> None:
        """Measure the rate of the last batch, if the writer has worked all the time since."""
        elapsed, self._began = now - self._began, now
        if self._was_behind and elapsed > 0:
            rate = self._taken / elapsed
            self._rate += (rate - self._rate) * (_NEWEST_WEIGHS if self._rate else 1.0)
