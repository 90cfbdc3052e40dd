"""Read durations of command-line options, such as 30d."""

import re
from datetime import timedelta

from typer import BadParameter

_DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": _DAY, "w": 7 * _DAY}  # in seconds
_MOST_DAYS = 3_650


def parse_duration(text: str) -> timedelta:
    """Return the duration of a text such as 90s, 15m, 12h, 30d, 2w, or 0.

    Raises BadParameter for anything else, and for more than 3,650 days.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    if text.strip() == "0":
        return timedelta()
    if found is None:
        raise BadParameter(
            f"{text!r} is no duration. Give a number and a unit: 90s, 15m, 12h, 30d or 2w."
        )
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds > _MOST_DAYS * _DAY:
        raise BadParameter(f"{text} is longer than {_MOST_DAYS:,} days.")
    return timedelta(seconds=seconds)
