"""Rates as operators write them: "600/minute", "20/second; 600/minute", or "none"."""

from typing import NamedTuple

from birthmark_sma.errors import RateRefusedError

NO_LIMIT = "none"

_MOST = 1_000_000_000
_LONGEST_SECONDS = 31 * 24 * 60 * 60
_MOST_RATES = 4
_MOST_CHARACTERS = 64  # as the column of a key's own rate has


class Rate(NamedTuple):
    """So many units in so many seconds."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.amount} in {self.seconds} {'second' if self.seconds == 1 else 'seconds'}"


def parse_rates(text: str) -> tuple[Rate, ...]:
    """Return the rates that a text names, the shortest window first; none of them for "none".

    Raises RateRefusedError, which does not repeat the text, for what is no rate, and for rates that
    nobody means: of nothing, of more than a thousand million, over more than 31 days, or several
    over one window.
    """
    # `sma` reads settings for every command, and most of them limit nothing.
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
