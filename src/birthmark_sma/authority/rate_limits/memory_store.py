"""Counts the units of one process in memory, with the sliding windows of `store`.

`limiter` uses it for every request. This module must never do I/O. The memory is bounded by
`MOST_CALLERS`, and the clock is monotonic, so that setting the machine's clock moves no window.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

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


class _Window:
    """The current and the previous count of one caller. `began` is the start of the current window.

    Slots, because there are up to `MOST_CALLERS` of these for each rate.
    """

    __slots__ = ("began", "current", "previous")

    def __init__(self, began: float) -> None:
        self.began = began
        self.current = 0
        self.previous = 0


class MemoryStore:
    """The windows of all callers under one limit. See `Store` for the contract.

    `rates` has the shortest window first. With `has_burst` the first one is exceeded by the last
    request that it allows. `clock` returns seconds that never go back.
    Only the event loop may call `take` and `give_back`. All other methods are safe from any thread,
    for a limit whose units are not taken: the validation thread counts FAILs.
    """

    def __init__(
        self,
        rates: tuple[Rate, ...],
        clock: Callable[[], float] = time.monotonic,
        most_callers: int = MOST_CALLERS,
        *,
        has_burst: bool = False,
    ) -> None:
        self._rates = rates
        self._has_burst = has_burst
        self._longest = rates[-1].seconds if rates else 0
        self._clock = clock
        self._most_callers = most_callers
        # Approximately in the order of `began`, so that the first entries are the oldest.
        self.callers: OrderedDict[str, tuple[_Window, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, who: str, cost: int) -> Decision:
        """Consume units; `give_back` can undo it."""
        # Fast path: this runs for each camera token. It gives the results of `left_of`, inlined
        # because function calls would cost more than the arithmetic.
        now = self._clock()
        windows = self.callers.get(who) or self._add(who, now)
        left = []
        for number, window in enumerate(windows):
            amount, seconds = self._rates[number]
            if now - window.began >= seconds:
                self._move_forward(who, window, seconds, now)
            previous = window.previous
            ends_in = window.began + seconds - now
            weighing = int(previous * ends_in / seconds) if previous else 0
            units = amount - window.current - weighing - cost
            if units < 0:
                if number or not self._has_burst or units + cost < 1:
                    return self._refusal(who, cost)
                usage = Usage(previous, window.current + cost, ends_in)
                left.append(left_of(self._rates[0], usage))
                continue
            more_in = ends_in - weighing * seconds / previous if previous else ends_in
            left.append((units, int(more_in) + 1))
        for window in windows:
            window.current += cost
        return tuple(left), None

    def give_back(self, who: str, cost: int) -> None:
        """Undo a `take` of the same request, in the same windows."""
        for window in self.callers.get(who, ()):
            window.current = max(0, window.current - cost)

    def count(self, who: str, units: int) -> None:
        """Count units that were used already, up to what is left."""
        with self._lock:
            now = self._clock()
            windows = self.callers.get(who) or self._add(who, now)
            usages = self._usage(who, windows, now)
            for rate, window, usage in zip(self._rates, windows, usages, strict=True):
                window.current += min(units, remaining(rate, usage))

    def blocked(self, who: str) -> Block | None:
        """Return the rate under which a caller has nothing left, or None."""
        return find_block(self._rates, self.usage(who), 1) if who in self.callers else None

    def knows(self, who: str) -> bool:
        """Return True if units of a caller were counted."""
        return who in self.callers

    def reserve(self, who: str, used: int, wanted: int) -> int:
        """Return how many units a caller may use, of which `used` are not counted yet.

        Nothing is reserved: only one thread of one process uses these units.
        """
        del wanted
        return min(map(remaining, self._rates, self.usage(who))) - used

    def release_all(self) -> None:
        """Do nothing: see `reserve`."""

    def usage(self, who: str) -> tuple[Usage, ...]:
        """Return the usage of each rate. Do not create windows for an unknown caller."""
        with self._lock:
            windows = self.callers.get(who)
            if windows is None:
                return (UNUSED,) * len(self._rates)
            # Also a reader moves windows forward, so it needs the lock.
            return self._usage(who, windows, self._clock())

    def left(self, who: str) -> tuple[Left, ...]:
        """Return what is left of each rate."""
        return tuple(map(left_of, self._rates, self.usage(who)))

    def _usage(self, who: str, windows: tuple[_Window, ...], now: float) -> tuple[Usage, ...]:
        usages = []
        for (_, seconds), window in zip(self._rates, windows, strict=True):
            if now - window.began >= seconds:
                self._move_forward(who, window, seconds, now)
            usages.append(Usage(window.previous, window.current, window.began + seconds - now))
        return tuple(usages)

    def _refusal(self, who: str, cost: int) -> Decision:
        usages = self.usage(who)
        block = find_block(self._rates, usages, cost, has_burst=self._has_burst)
        return tuple(map(left_of, self._rates, usages)), block or Block(0, 1)

    def _move_forward(self, who: str, window: _Window, seconds: int, now: float) -> None:
        if seconds == self._longest:
            self.callers.move_to_end(who)
        if now - window.began < 2 * seconds:
            window.previous = window.current
            window.began += seconds  # windows follow each other without a gap
        else:
            window.previous = 0
            window.began = now
        window.current = 0

    def _add(self, who: str, now: float) -> tuple[_Window, ...]:
        """Add a new caller, after dropping up to two of the oldest.

        They are dropped if their windows are over, or if there are too many. Two for one, so that
        the number of callers shrinks, and each call takes constant time.
        """
        for _ in range(2):
            oldest = next(iter(self.callers), None)
            if oldest is None:
                break
            over = now - self.callers[oldest][-1].began >= 2 * self._longest
            if not over and len(self.callers) < self._most_callers:
                break
            del self.callers[oldest]
        windows = self.callers[who] = tuple(_Window(now) for _ in self._rates)
        return windows
