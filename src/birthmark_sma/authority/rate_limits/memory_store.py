"""Sliding-window counters in memory: the recent usage of each caller, and what is left of its rate.

Used by `limiter`; `redis_store` uses the same arithmetic. This module must never do I/O.

Theory: a window has the length of the rate's period. The current window counts in full. The one
before it counts by the share of it that lies within one period before now. For example, 25 % into
the current window, 75 % of the previous count is added. A burst around the boundary of two windows
therefore gets no more than the limit of one window. The `limits` library counts in the same way in
Redis.

The library's memory store is not used: it starts a thread a hundred times a second, uses a clock
that can be set, keeps each caller for ever, and takes several times as long.
"""

import math
import threading
from collections import OrderedDict
from typing import NamedTuple

from birthmark_sma.rates import Rate

MOST_CALLERS = 65_536
"""The most callers that one rate remembers, in about 20 MB. Beyond that, the oldest are dropped. To
profit from that, an attacker needs as many addresses."""


class Usage(NamedTuple):
    """The usage of a rate by one caller."""

    previous: int
    """Units in the window before the current one."""
    current: int
    """Units in the current window."""
    left: float
    """Seconds until the current window ends."""


UNUSED = Usage(0, 0, 0.0)


def remaining(rate: Rate, usage: Usage) -> int:
    """Return how many units a caller can consume now."""
    weighted = int(usage.previous * usage.left / rate.seconds) + usage.current
    return max(0, rate.amount - weighted)


def seconds_until(rate: Rate, usage: Usage, cost: int) -> int:
    """Return after how many whole seconds `cost` units can be consumed; 0 for now.

    Return the length of the window if `cost` exceeds the rate, so that it is never possible.
    """
    if cost > rate.amount:
        return rate.seconds
    if cost <= remaining(rate, usage):
        return 0
    # `share` is the number of seconds before the end of a window at which the weighted count of the
    # window before it has become small enough. In the second case the current window alone is too
    # full, so the wait reaches into the next window, whose predecessor it then is.
    if usage.current + cost <= rate.amount:
        share = rate.seconds * (rate.amount - usage.current - cost + 1) / usage.previous
        wait = usage.left - share
    else:
        share = rate.seconds * (rate.amount - cost + 1) / usage.current
        wait = usage.left + rate.seconds - min(share, rate.seconds)
    return math.floor(wait + 1e-6) + 1  # exactly at `wait` the weighted count is still too large


class Window:
    """The current and the previous count of one caller. `began` is the start of the current window.

    Slots, because there are up to `MOST_CALLERS` of these for each rate.
    """

    __slots__ = ("began", "current", "previous")

    def __init__(self, began: float) -> None:
        self.began = began
        self.current = 0
        self.previous = 0


class Windows:
    """The windows of all callers under one rate. Owned by one thread.

    `now` is always in seconds of a monotonic clock.
    """

    def __init__(self, rate: Rate, most_callers: int = MOST_CALLERS) -> None:
        self.rate = rate
        self._most_callers = most_callers
        # Approximately in the order of `began`, so that the first entries are the oldest.
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def usage(self, who: str, now: float) -> Usage:
        """Return the usage of a caller. Do not create a window for an unknown one."""
        if who not in self._windows:
            return UNUSED
        window = self._at(who, now)
        return Usage(window.previous, window.current, window.began + self.rate.seconds - now)

    def take(self, who: str, cost: int, now: float) -> tuple[int, int] | None:
        """Consume `cost` units and return how many are left, and the seconds until there are more.

        Return None and consume nothing if fewer than `cost` are left.
        """
        # Fast path: this runs for each camera token. It gives the results of `remaining` and
        # `seconds_until`, inlined because function calls would cost more than the arithmetic.
        amount, seconds = self.rate
        window = self._windows.get(who)
        if window is None or now - window.began >= seconds:
            window = self._at(who, now)
        previous = window.previous
        ends_in = window.began + seconds - now
        weighing = int(previous * ends_in / seconds) if previous else 0
        left = amount - window.current - weighing - cost
        if left < 0:
            return None
        window.current += cost
        more_in = ends_in - weighing * seconds / previous if previous else ends_in
        return left, int(more_in) + 1

    def give_back(self, who: str, cost: int) -> None:
        """Undo a `take` of the same request, in the same window."""
        window = self._windows.get(who)
        if window is not None:
            window.current = max(0, window.current - cost)

    def fill(self, who: str, cost: int, now: float) -> None:
        """Count units that were used already, but no more than are left.

        So a caller that exceeded the rate is never held back for longer than the next window.
        """
        left = remaining(self.rate, self.usage(who, now))
        self._at(who, now).current += min(cost, left)

    def _at(self, who: str, now: float) -> Window:
        """Return a caller's current window. Create it, or move it forward, if necessary."""
        window = self._windows.get(who)
        if window is None:
            self._make_room(now)
            window = self._windows[who] = Window(now)
        age = now - window.began
        seconds = self.rate.seconds
        if age >= seconds:
            self._windows.move_to_end(who)
            if age < 2 * seconds:
                window.previous = window.current
                window.began += seconds  # windows follow each other without a gap
            else:
                window.previous = 0
                window.began = now
            window.current = 0
        return window

    def _make_room(self, now: float) -> None:
        """Drop up to two of the oldest callers, if their windows are over or there are too many.

        Called for each new caller. Two for one, so that the number of callers shrinks, and each
        call takes constant time.
        """
        windows = self._windows
        for _ in range(2):
            if not windows:
                return
            who = next(iter(windows))
            over = now - windows[who].began >= 2 * self.rate.seconds
            if not over and len(windows) < self._most_callers:
                return
            del windows[who]


class GuardedWindows(Windows):
    """Windows in which one thread counts while other threads read the usage."""

    def __init__(self, rate: Rate) -> None:
        super().__init__(rate)
        self._lock = threading.Lock()

    def usage(self, who: str, now: float) -> Usage:
        """Return the usage of a caller. Safe from any thread, as it may move the window forward."""
        with self._lock:
            return super().usage(who, now)

    def fill(self, who: str, cost: int, now: float) -> None:
        """Count units that were used already, but no more than are left. Safe from any thread."""
        with self._lock:
            # Not `super().fill`: it calls `self.usage`, which takes this lock too: a deadlock.
            left = remaining(self.rate, super().usage(who, now))
            self._at(who, now).current += min(cost, left)
