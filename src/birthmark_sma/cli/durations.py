"""Read durations of command-line options, such as 30d."""

import re
from datetime import timedelta

from typer import BadParameter

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=3_650)


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
    duration = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if duration > _LONGEST:
        raise BadParameter(f"{text} is longer than {_LONGEST.days:,} days.")
    return duration
