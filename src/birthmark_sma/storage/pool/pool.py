"""The pool of one writer: the calls that wait for it, and the room that is left for more.

`storage.group_commit` adds calls to it and takes batches from it, under its own lock. The endpoints
ask for room before they read and parse a body (`web.api`): what cannot be taken must cost little.
The order of the calls and the share of each caller are those of `fair_queue`.
"""

import threading
from time import monotonic
from typing import Generic, TypeVar

from birthmark_sma.errors import PoolFullError
from birthmark_sma.storage.pool.fair_queue import FairQueue

Call = TypeVar("Call")


class Reservation:
    """Room for the items of a call that is being parsed. Give it back with `Pool.release`."""

    __slots__ = ("caller", "items")

    def __init__(self, caller: str | None, items: int) -> None:
        self.caller = caller
        self.items = items


class Pool(Generic[Call]):
    """The waiting calls of one writer. A caller without a name (None) has no share of its own.

    `changed` is the lock of the writer. `add`, `take` and `oldest` are called with it held, the
    other methods from any thread without it.
    """

    def __init__(self, changed: threading.Condition, limit: int) -> None:
        self._changed = changed
        # Guarded by `changed`, apart from single numbers that are only read.
        self._queue: FairQueue[Call] = FairQueue(limit)
        self.refused = 0
        """The number of items that were refused."""

    def __bool__(self) -> bool:
        """Return True if a call waits."""
        return bool(self._queue)

    @property
    def waiting(self) -> int:
        """The number of items that wait."""
        return self._queue.waiting

    def has_room(self, caller: str | None, items: int) -> bool:
        """Return True if a call of up to `items` items would be accepted now."""
        # Without the lock, which would cost more: the call itself is checked with it.
        return self._queue.has_room(caller, single=items == 1)

    def check(self, caller: str | None, items: int) -> None:
        """Raise PoolFullError if a call of up to `items` items would be refused now."""
        with self._changed:
            self._check(caller, items)

    def reserve(self, caller: str | None, items: int) -> Reservation:
        """Reserve room for a call of up to `items` items. Raises PoolFullError.

        The call is then accepted in any case, so its body is not parsed in vain.
        """
        with self._changed:
            self._check(caller, items)
            self._queue.reserve(caller, items)
        return Reservation(caller, items)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back, unless the call was added meanwhile."""
        with self._changed:
            self._release(reservation)

    def add(
        self, caller: str | None, call: Call, items: int, reservation: Reservation | None = None
    ) -> None:
        """Add a call. Raises PoolFullError unless room was reserved for it."""
        if reservation is None:
            self._check(caller, items)
        else:
            self._release(reservation)
        self._queue.add(caller, call, items)

    def take(self, limit: int) -> list[Call]:
        """Remove and return the calls of the next batch, of about `limit` items at most."""
        return self._queue.take(limit, monotonic())

    def oldest(self) -> Call | None:
        """Return the call that has waited longest, or None."""
        return self._queue.oldest()

    def _check(self, caller: str | None, items: int) -> None:
        if not self.has_room(caller, items):
            self.refused += items
            raise PoolFullError(self._queue.drain_seconds)

    def _release(self, reservation: Reservation) -> None:
        if reservation.items:
            self._queue.release(reservation.caller, reservation.items)
            reservation.items = 0
