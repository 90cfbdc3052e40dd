"""Sliding windows in memory: what each caller has had lately, and what that leaves.

The arithmetic is that of the `limits` library's sliding window counter, which counts in Redis: the
window under way counts in full, the one before it by the share that a span of one window, ending
now, still reaches into. A burst at the edge of two windows therefore gets no more than one window's
worth. The library's own store in memory is not used: it starts a thread a hundred times a second,
goes by a clock that can be set, keeps every caller that ever came, and costs several times as much
(`python -m bench.rate_limits`).
"""

import math
import threading
from collections import OrderedDict
from typing import NamedTuple

from birthmark_sma.rates import Rate

MOST_CALLERS = 65_536
"""How many callers one rate remembers, in about 20 MB. Beyond that the oldest are forgotten, which
helps only somebody who has as many addresses."""


class Usage(NamedTuple):
    """What a caller has had of a rate."""

    previous: int
    """Units in the window before this one."""
    current: int
    left: float
    """Seconds until the current window ends."""


UNUSED = Usage(0, 0, 0.0)


def remaining(rate: Rate, usage: Usage) -> int:
    """Return how many units a caller could have now."""
    weighted = int(usage.previous * usage.left / rate.seconds) + usage.current
    return max(0, rate.amount - weighted)


def seconds_until(rate: Rate, usage: Usage, cost: int) -> int:
    """Return in how many whole seconds so many units can be had; 0 for now.

    What can never be had gets the length of the window.
    """
    if cost > rate.amount:
        return rate.seconds
    if cost <= remaining(rate, usage):
        return 0
    # At how many seconds before the end of a window its predecessor weighs little enough.
    if usage.current + cost <= rate.amount:
        share = rate.seconds * (rate.amount - usage.current - cost + 1) / usage.previous
        wait = usage.left - share
    else:
        share = rate.seconds * (rate.amount - cost + 1) / usage.current
        wait = usage.left + rate.seconds - min(share, rate.seconds)
    return math.floor(wait + 1e-6) + 1  # at that very moment it still weighs too much


class Window:
    """The window of one caller."""

    __slots__ = ("began", "current", "previous")

    def __init__(self, began: float) -> None:
        self.began = began
        self.current = 0
        self.previous = 0


class Windows:
    """The windows of all callers under one rate. `now` is in seconds, of a clock nobody sets."""

    def __init__(self, rate: Rate, most_callers: int = MOST_CALLERS) -> None:
        self.rate = rate
        self._most_callers = most_callers
        self._windows: OrderedDict[str, Window] = OrderedDict()  # by when they began, about

    def __len__(self) -> int:
        return len(self._windows)

    def usage(self, who: str, now: float) -> Usage:
        """Return what a caller has had, and leave no trace of the question."""
        if who not in self._windows:
            return UNUSED
        window = self._at(who, now)
        return Usage(window.previous, window.current, window.began + self.rate.seconds - now)

    def take(self, who: str, cost: int, now: float) -> tuple[int, int] | None:
        """Let a caller have so many units, if they are there, or None of them.

        Returns how many are left, and in how many seconds there are more. Every camera token pays
        for this, so it is what `remaining` and `seconds_until` would say, written out.
        """
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
        """Undo a `take` of just now."""
        window = self._windows.get(who)
        if window is not None:
            window.current = max(0, window.current - cost)

    def fill(self, who: str, cost: int, now: float) -> None:
        """Count what has happened already, up to a full window: it drains in one more at most."""
        left = remaining(self.rate, self.usage(who, now))
        self._at(who, now).current += min(cost, left)

    def _at(self, who: str, now: float) -> Window:
        """Return a caller's window, the current one."""
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
                window.began += seconds
            else:
                window.previous = 0
                window.began = now
            window.current = 0
        return window

    def _make_room(self, now: float) -> None:
        """Forget two callers whose windows are over for each that comes, or the oldest of all."""
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
    """Windows in which one thread counts while others look."""

    def __init__(self, rate: Rate) -> None:
        super().__init__(rate)
        self._lock = threading.Lock()

    def usage(self, who: str, now: float) -> Usage:
        """Return what a caller has had."""
        with self._lock:
            return super().usage(who, now)

    def fill(self, who: str, cost: int, now: float) -> None:
        """Count what has happened already."""
        with self._lock:
            left = remaining(self.rate, super().usage(who, now))
            self._at(who, now).current += min(cost, left)
