"""Rules for requests to other machines: this machine or not, Retry-After, pauses between retries.

Clients, cameras and the server share it. It has no clock and sends nothing.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Return True if data sent to the host or address stays on this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_http_date(text: str) -> datetime | None:
    """Return the time in a header field (RFC 9110, section 5.6.7), or None."""
    try:
        time = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # "-0000" means UTC without a time zone of the sender (RFC 5322, section 3.3).
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def parse_retry_after(value: str | None, now: datetime | None) -> float | None:
    """Return the seconds that a Retry-After asks to wait (RFC 9110, section 10.2.3), or None.

    `now` is the time to compare a date with. Without it, a date gives None.
    """
    value = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    until = parse_http_date(value)
    return None if until is None or now is None else max(0.0, (until - now).total_seconds())


def draw_pause(number: int, *, first: float, longest: float, chance: Callable[[], float]) -> float:
    """Return the pause in seconds before a retry. `number` counts the pauses, from 0.

    The pause doubles from `first` to `longest`. Half of it is random, so that programs that failed
    together do not retry together. `chance()` returns a random number from 0 to 1.
    """
    whole = min(longest, first * 2.0 ** min(number, 30))
    return whole * (0.5 + 0.5 * chance())
