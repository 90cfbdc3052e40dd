"""Read durations of command-line options, such as 30d. All commands take the same units."""

import re
from datetime import timedelta

from typer import BadParameter

_DAY = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": _DAY, "w": 7 * _DAY}  # in seconds
_LONGEST = timedelta(days=3_650)


def parse_duration(
    text: str, option: str, *, may_be_zero: bool = False, longest: timedelta = _LONGEST
) -> timedelta:
    """Return the duration of a text such as 90s, 15m, 12h, 30d, 2w, or 0.

    `option` is the option that gives it, for the message. Raises BadParameter for anything else,
    for more than `longest`, and for nothing at all unless it `may_be_zero`.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    if found is None and text.strip() != "0":
        raise BadParameter(
            f"{text!r} is no duration. Give a number and a unit: 90s, 15m, 12h, 30d or 2w.",
            param_hint=option,
        )
    seconds = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    if seconds == 0 and not may_be_zero:
        raise BadParameter("Give at least a second.", param_hint=option)
    if seconds > longest.total_seconds():
        raise BadParameter(f"{text} is longer than {longest.days:,} days.", param_hint=option)
    return timedelta(seconds=seconds)
