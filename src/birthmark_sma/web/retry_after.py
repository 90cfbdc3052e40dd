"""Compute the Retry-After of every 503: it grows with the fault, and differs for each caller.

`web.problem_documents` calls `retry_after` for each problem that may be over later.
"""

from collections.abc import Callable
from secrets import SystemRandom

from birthmark_sma.errors import PoolFullError, RateLimitedError

LONGEST_SECONDS = 30
"""The longest time before the jitter, which doubles it at most."""

# A caller that waits for so much of the time that the outage has lasted doubles its pauses.
_SHARE_OF_OUTAGE = 0.5
_chance = SystemRandom()


def retry_after(error: Exception, outage_seconds: Callable[[], float]) -> int:
    """Return after how many whole seconds to repeat a request, at least 1.

    `outage_seconds` returns for how long nothing could be written. For a full pool, the time is
    that in which what waits will be done. A rate limit knows its own time, which needs no jitter:
    each caller has its own windows.
    """
    if isinstance(error, RateLimitedError):
        return error.retry_after
    if isinstance(error, PoolFullError):
        return with_jitter(error.drain_seconds)
    return with_jitter(outage_seconds() * _SHARE_OF_OUTAGE)


def with_jitter(seconds: float) -> int:
    """Return a random number of whole seconds, from once to twice as many.

    So callers that were refused together do not come back together. Random rounding spreads even
    the shortest time over 1 and 2 seconds.
    """
    bounded = min(max(seconds, 1.0), LONGEST_SECONDS)
    return int(bounded * _chance.uniform(1, 2) + _chance.uniform(0, 0.5))
