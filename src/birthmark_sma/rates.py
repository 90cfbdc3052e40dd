"""Parse rate limits as operators write them: "600/minute", "20/second; 600/minute", or "none".

Settings, access keys and the rate limiter use this module. It counts nothing: see
`authority.rate_limits`.
"""

from typing import NamedTuple

from birthmark_sma.errors import RateRefusedError

NO_LIMIT = "none"

_MOST = 1_000_000_000
_LONGEST_SECONDS = 31 * 24 * 60 * 60
_MOST_RATES = 4
_MOST_CHARACTERS = 64  # the size of the column access_keys.rate_limit


class Rate(NamedTuple):
    """A rate limit: `amount` units in `seconds` seconds."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.amount} in {self.seconds} {'second' if self.seconds == 1 else 'seconds'}"


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Return the rates in a text, the shortest window first; an empty tuple for "none".

    Raises RateRefusedError if the text is not a rate, if it has more than 64 characters or more
    than 4 rates, and for rates that make no sense: an amount of 0 or above 1,000,000,000, a window
    of more than 31 days, or two rates with the same window. The message does not repeat the text.
    """
    # Imported here because every `sma` command reads the settings, and most need no rates.
    from limits import parse_many  # noqa: PLC0415

    if text.strip().lower() == NO_LIMIT:
        return ()
    try:
        items = parse_many(text) if len(text) <= _MOST_CHARACTERS else []
    except ValueError:
        items = []
    rates = sorted((Rate(each.amount, each.get_expiry()) for each in items), key=_seconds)
    if not rates:
        raise RateRefusedError('it is a rate as "600/minute", several with ; between, or "none"')
    if any(not (0 < each.amount <= _MOST and each.seconds <= _LONGEST_SECONDS) for each in rates):
        raise RateRefusedError("a rate allows 1 to 1,000,000,000, in at most 31 days")
    if len(rates) > _MOST_RATES or len({each.seconds for each in rates}) < len(rates):
        raise RateRefusedError("there are at most four rates, each over another time")
    return tuple(rates)


def _seconds(rate: Rate) -> int:
    return rate.seconds
