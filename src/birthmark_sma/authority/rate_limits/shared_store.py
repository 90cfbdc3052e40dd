"""Counts the units of all processes of one server, in memory that they share.

`limiter` uses it in place of `memory_store` where a server has several processes. It answers at
once: no call waits for another process. Units are added first and then compared with the limit, so
that two processes cannot both take the last one; if it is too much, they are taken back.
"""

import time
from collections.abc import Callable

from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.authority.rate_limits.store import (
    MOST_CALLERS,
    UNUSED,
    Block,
    Decision,
    Left,
    Usage,
    find_block,
    left_of,
    remaining,
)
from birthmark_sma.rates import Rate


class SharedStore:
    """The windows of all callers under one limit. See `Store` for the contract.

    `kind` is the same in all processes. Safe from any thread, as `MemoryStore`.
    """

    def __init__(
        self,
        kind: str,
        rates: tuple[Rate, ...],
        windows: SharedWindows,
        clock: Callable[[], float] = time.monotonic,
        *,
        has_burst: bool = False,
    ) -> None:
        self._kind = kind
        self._rates = rates
        self._has_burst = has_burst
        self._windows = windows
        self._clock = clock  # the same in all processes of a machine
        # The slots of the callers: a hash of their names costs more than all else.
        self._slots: dict[str, tuple[tuple[int, int], ...]] = {}
        self._held: set[str] = set()

    def take(self, who: str, cost: int) -> Decision:
        """Consume units; `give_back` can undo it."""
        now = self._now()
        places = self._find(who, now)
        self._add(places, cost, now)
        usages = self._usages(places, now)
        for number, (rate, usage) in enumerate(zip(self._rates, usages, strict=True)):
            weighted = int(usage.previous * usage.left / rate.seconds) + usage.current
            # The last request that a burst allows may exceed it.
            most = rate.amount + (cost - 1 if self._has_burst and not number else 0)
            if weighted > most:
                self._add(places, -cost, now)
                before = self._usages(places, now)
                # Without a block another process has given back what was in the way.
                block = find_block(self._rates, before, cost, has_burst=self._has_burst)
                return tuple(map(left_of, self._rates, before)), block or Block(number, 1)
        return tuple(map(left_of, self._rates, usages)), None

    def give_back(self, who: str, cost: int) -> None:
        """Undo a `take` of the same request."""
        now = self._now()
        self._add(self._find(who, now), -cost, now)

    def count(self, who: str, units: int) -> None:
        """Count units that were used already, up to what is left."""
        now = self._now()
        places = self._find(who, now)
        usages = self._usages(places, now)
        for place, rate, usage in zip(places, self._rates, usages, strict=True):
            self._windows.add(place, min(units, remaining(rate, usage)), rate.seconds, now)

    def knows(self, who: str) -> bool:
        """Return True if units of a caller were counted."""
        # Each slot of a caller tells it, so one is enough: this runs for each camera token.
        slots = self._slots.get(who)
        if slots and self._windows.is_named(*slots[0]):
            return self._windows.counted(slots[0][0])
        places = self._known(who, self._now())
        return False if not places else self._windows.counted(places[0])

    def blocked(self, who: str) -> Block | None:
        """Return the rate under which a caller has nothing left, or None."""
        return find_block(self._rates, self.usage(who), 1)

    def usage(self, who: str) -> tuple[Usage, ...]:
        """Return the usage of each rate. Do not create windows for an unknown caller."""
        now = self._now()
        places = self._known(who, now)
        return (UNUSED,) * len(self._rates) if places is None else self._usages(places, now)

    def left(self, who: str) -> tuple[Left, ...]:
        """Return what is left of each rate."""
        return tuple(map(left_of, self._rates, self.usage(who)))

    def reserve(self, who: str, used: int, wanted: int) -> int:
        """Return how many units a caller may use, and reserve up to `wanted` of them.

        `used` is the number of units that were used and not counted yet. At least 1 is returned if
        only reservations of other processes are in the way: most of theirs will not be used.
        Replaces what this process had reserved for the caller.
        """
        now = self._now()
        places = self._find(who, now)
        self._held.add(who)
        for place in places:  # first, so that another process that asks meanwhile sees it
            self._windows.reserve(place, used + wanted)
        free = []
        for place, rate in zip(places, self._rates, strict=True):
            there = remaining(rate, self._windows.read(place, rate.seconds, now)) - used
            free.append(min(there, max(1, there - self._windows.reserved_by_others(place))))
        granted = min(free)
        for place in places:
            self._windows.reserve(place, used + max(0, min(wanted, granted)))
        return granted

    def release_all(self) -> None:
        """Give up all that this process has reserved."""
        while self._held:
            for place in self._find(self._held.pop(), self._now()):
                self._windows.reserve(place, 0)

    def _now(self) -> int:
        return int(self._clock() * 10**9)

    def _add(self, places: tuple[int, ...], units: int, now: int) -> None:
        for number, rate in enumerate(self._rates):
            self._windows.add(places[number], units, rate.seconds, now)

    def _usages(self, places: tuple[int, ...], now: int) -> tuple[Usage, ...]:
        read = self._windows.read
        # Not `zip` with `strict`, which is slow.
        return tuple([read(places[n], rate.seconds, now) for n, rate in enumerate(self._rates)])

    def _known(self, who: str, now: int) -> tuple[int, ...] | None:
        """Return the slots of a caller, one for each rate, or None if there are none."""
        slots = self._slots.get(who)
        if slots:
            named = [place for place, number in slots if self._windows.is_named(place, number)]
            if len(named) == len(slots):
                return tuple(named)
        return self._look(who, now, create=False)

    def _find(self, who: str, now: int) -> tuple[int, ...]:
        """Return the slots of a caller, one for each rate. They are created if needed."""
        return self._known(who, now) or self._look(who, now, create=True) or ()

    def _look(self, who: str, now: int, *, create: bool) -> tuple[int, ...] | None:
        places = []
        for rate in self._rates:
            name = f"{self._kind}/{rate.amount}/{rate.seconds}/{who}"
            place = self._windows.find(name, now, create=create)
            if place is None:
                return None
            places.append(place)
        if len(self._slots) >= MOST_CALLERS:
            self._slots.clear()
        self._slots[who] = tuple((place, self._windows.hash_at(place)) for place in places)
        return tuple(places)
