"""Parse rate limits as operators write them: "600/minute", "20/second; 600/minute", or "none".

Settings, access keys and the rate limiter use this module. It counts nothing: see
`authority.rate_limits`.
"""

import math
import re
from typing import NamedTuple

from birthmark_sma.counts import counted
from birthmark_sma.errors import RateRefusedError

NO_LIMIT = "none"

_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "month": 30 * 86_400}
_RATE = re.compile(
    rf"\s*(\d+)\s*(?:/|per)\s*(\d*)\s*({'|'.join(_SECONDS)})s?\s*", re.ASCII | re.IGNORECASE
)
_MOST = 1_000_000_000
_LONGEST_SECONDS = 31 * 24 * 60 * 60
_MOST_RATES = 4
_BURSTS = 10  # parts of a window
_SMALLEST_BURST = 100
_MOST_CHARACTERS = 64  # the size of the column access_keys.rate_limit


class Rate(NamedTuple):
    """A rate limit: `amount` units in `seconds` seconds."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.amount:,} in {counted(self.seconds, 'second')}"


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Return the rates in a text, the shortest window first; an empty tuple for "none".

    Raises RateRefusedError if the text is not a rate, if it has more than 64 characters or more
    than 4 rates, and for rates that make no sense: an amount of 0 or above 1,000,000,000, a window
    of more than 31 days, or two rates with the same window. The message does not repeat the text.
    """
    if text.strip().lower() == NO_LIMIT:
        return ()
    parts = re.split("[,;|]", text) if len(text) <= _MOST_CHARACTERS else []
    matches = [match for match in map(_RATE.fullmatch, parts) if match is not None]
    found = (_to_rate(*match.groups()) for match in matches)
    rates = sorted(found, key=_seconds) if len(matches) == len(parts) else []
    if not rates:
        raise RateRefusedError('it is a rate as "600/minute", several with ; between, or "none"')
    if any(not (0 < each.amount <= _MOST and each.seconds <= _LONGEST_SECONDS) for each in rates):
        raise RateRefusedError("a rate allows 1 to 1,000,000,000, in at most 31 days")
    if len(rates) > _MOST_RATES or len({each.seconds for each in rates}) < len(rates):
        raise RateRefusedError("there are at most four rates, each over another time")
    return tuple(rates)


def burst_of(rates: tuple[Rate, ...]) -> Rate | None:
    """Return the rate that spreads the shortest of `rates` over its window, or None.

    It allows a tenth of the amount in a tenth of the time, so that nobody spends the allowance of a
    minute in a second. It allows at least 100 units, in as much more time: small limits are for
    people and their browsers, who come in bursts.
    """
    if not rates:
        return None
    amount, seconds = rates[0]
    least = max(amount // _BURSTS, _SMALLEST_BURST)
    burst = Rate(least, math.ceil(seconds * least / amount))
    return burst if burst.amount < amount and burst.seconds < seconds else None


def _to_rate(amount: str, multiple: str, period: str) -> Rate:
    return Rate(int(amount), (int(multiple or 0) or 1) * _SECONDS[period.lower()])


def _seconds(rate: Rate) -> int:
    return rate.seconds
