"""The interface of a store for one rate limit, and the arithmetic of sliding windows.

`memory_store`, `shared_store` and `redis_store` implement `Store`, and `limiter` uses them. This
module must never do I/O.

Theory: a window has the length of the rate's period. The current window counts in full. The one
before it counts by the share of it that lies within one period before now. For example, 25 % into
the current window, 75 % of the previous count is added. A burst around the boundary of two windows
therefore gets no more than the limit of one window. `windows.lua` does the same in Redis.
"""

import math
from collections.abc import Awaitable
from typing import NamedTuple, Protocol, TypeAlias

from birthmark_sma.rates import Rate

MOST_CALLERS = 65_536
"""The most callers that one limit remembers, in about 20 MB. Beyond that, the oldest are dropped.
To profit from that, an attacker needs as many addresses."""


class Usage(NamedTuple):
    """The usage of a rate by one caller."""

    previous: int
    """Units in the window before the current one."""
    current: int
    """Units in the current window."""
    left: float
    """Seconds until the current window ends."""


UNUSED = Usage(0, 0, 0.0)


Left: TypeAlias = tuple[int, int]
"""The units that a caller has left of one rate, and in how many seconds there are more."""


class Block(NamedTuple):
    """The rate that refuses a caller, and for how long."""

    number: int
    """The place of the rate in its limit."""
    wait: int
    """Whole seconds until the caller may try again, at least 1."""


Decision: TypeAlias = tuple[tuple[Left, ...], Block | None]
"""What is left of each rate after `Store.take`, and the rate that refused; None if none did.

Plain tuples, because one is made for each camera token."""


class Store(Protocol):
    """The units that each caller has used under one limit, which has one or more rates.

    `who` is a caller as `Caller.partition` names it. MemoryStore counts the requests of one process
    and SharedStore those of one server. They answer at once. RedisStore counts those of all
    processes: what it returns as an awaitable raises StoreAwayError if Redis is unavailable.
    """

    def take(self, who: str, cost: int) -> Decision | Awaitable[Decision]:
        """Consume `cost` units under all rates, or under none if one of them has fewer left."""

    def count(self, who: str, units: int) -> None:
        """Count units that were used already: FAILs or wrong credentials. Never wait.

        Count no more than is left of each rate, so that a caller that exceeded it is never held
        back for longer than the next window.
        """

    def blocked(self, who: str) -> Block | None:
        """Return the rate under which a caller has nothing left, or None. Never wait."""


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


def left_of(rate: Rate, usage: Usage) -> Left:
    """Return what is left of a rate."""
    units = remaining(rate, usage)
    return units, 0 if units == rate.amount else seconds_until(rate, usage, units + 1)


def find_block(
    rates: tuple[Rate, ...], usages: tuple[Usage, ...], cost: int, *, has_burst: bool = False
) -> Block | None:
    """Return the rate that has fewer than `cost` units left for the longest time, or None.

    A caller that waits for a shorter time would be refused again. A rate that can never allow so
    many comes before all others.
    """
    blocks = []
    for number, (rate, usage) in enumerate(zip(rates, usages, strict=True)):
        needed = 1 if has_burst and not number else cost
        if needed > rate.amount:
            return Block(number, rate.seconds)
        if wait := seconds_until(rate, usage, needed):
            blocks.append(Block(number, wait))
    return max(blocks, key=lambda block: block.wait, default=None)
