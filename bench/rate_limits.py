"""`python -m bench.rate_limits`: measure the cost of rate limits, and their memory.

It prints microseconds per camera token and the memory of a million addresses. For comparison it
measures the strategies of the `limits` library with its in-memory store, which the server does not
use; the figures show why. Each gets the same calls: one hit, then the remaining allowance.
"""

import asyncio
import time
import tracemalloc
from collections.abc import Callable, Iterator

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from starlette.types import Scope

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.rate_limits.limiter import DEFAULTS, Kind, RateLimits
from birthmark_sma.authority.rate_limits.memory_store import Windows
from birthmark_sma.authority.rate_limits.redis_store import SharedWindows
from birthmark_sma.rates import Rate, parse_rates
from birthmark_sma.web.middleware import rate_limit
from tests.support.databases.redis import Redis

_TIMES = 500
_ROUNDS = 300  # the fastest of many short rounds counts, because other programs disturb the others
_SHARED_ROUNDS = 30
_CALLERS = 1_000_000
_TOKEN_MICROSECONDS = 70.0  # the server's CPU time for a whole token: docs/performance.md
_CALLER = Caller("192.0.2.7")


def main() -> None:
    """Measure and print the table."""
    table = Table("what a token pays for", "us", "of 70 us", title="Rate limits")
    for name, microseconds in _figures():
        table.add_row(name, f"{microseconds:.2f}", f"{microseconds / _TOKEN_MICROSECONDS:.1%}")
    console = Console(width=100)
    console.print(table)
    console.print(f"{_CALLERS:,} addresses occupy {_megabytes():.0f} MB in one rate.")


def _figures() -> Iterator[tuple[str, float]]:
    yield "no limits", _seconds(_asked_by_the_server({}))
    default = {kind: parse_rates(text) for kind, text in DEFAULTS.items()}
    default[Kind.VALIDATE] = (Rate(1_000_000_000, 60),)
    yield "the check and its header fields, in memory", _seconds(_asked_by_the_server(default))
    limits = RateLimits(default)
    yield "the check alone", _seconds(lambda: limits.take(Kind.VALIDATE, _CALLER))
    with Redis() as redis:
        for together in (1, 32):
            took = asyncio.run(_shared(redis.url, default, together))
            yield f"and Redis, {together} at once (its own time apart)", took
    for strategy, rate in (
        (FixedWindowRateLimiter, "1000000000/minute"),
        (SlidingWindowCounterRateLimiter, "1000000000/minute"),
        (MovingWindowRateLimiter, "20000/minute"),
    ):
        yield f"not used: limits, {strategy.__name__}", _seconds(_asked_of(strategy, rate))


def _asked_by_the_server(rates: dict[Kind, tuple[Rate, ...]]) -> Callable[[], None]:
    limits = RateLimits(rates)

    def ask() -> None:
        scope: Scope = {}
        rate_limit.consume(scope, limits, Kind.VALIDATE, _CALLER)

    return ask


def _asked_of(strategy: type[RateLimiter], rate: str) -> Callable[[], None]:
    item = parse(rate)
    limiter = strategy(MemoryStorage())

    def ask() -> None:
        limiter.hit(item, "validate", _CALLER.identity)
        limiter.get_window_stats(item, "validate", _CALLER.identity)

    return ask


def _seconds(ask: Callable[[], object]) -> float:
    """Return the microseconds of one call of `ask`, from the fastest round."""
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_TIMES):
            ask()
        best = min(best, (time.perf_counter() - began) / (_TIMES))
    return best * 1e6


async def _shared(url: str, rates: dict[Kind, tuple[Rate, ...]], together: int) -> float:
    """Return the CPU time of this process for one token with limits in Redis, in microseconds.

    `together` is the number of concurrent requests. Redis' own CPU time is not included.
    """
    limits = RateLimits(rates, lambda figures: SharedWindows(SecretStr(url), figures))
    await limits.start()
    assert limits.shared

    async def ask() -> None:
        for _ in range(20):
            scope: Scope = {}
            rate_limit.consume(scope, limits, Kind.VALIDATE, _CALLER)
            await rate_limit.consume_shared(scope, limits, Kind.VALIDATE, _CALLER)

    best = float("inf")
    for _ in range(_SHARED_ROUNDS):
        began = time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(ask())
        best = min(best, (time.process_time() - began) / (20 * together))
    await limits.close()
    return best * 1e6


def _megabytes() -> float:
    tracemalloc.start()
    windows = Windows(Rate(100, 60))
    for number in range(_CALLERS):
        windows.take(f"ip:{number:08x}", 1, 0.0)
    occupied = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return occupied / 1e6


if __name__ == "__main__":
    main()
