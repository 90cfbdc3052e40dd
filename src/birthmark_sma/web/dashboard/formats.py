"""Format numbers, times and bytes for the pages. The templates use these as Jinja filters."""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from markupsafe import Markup, escape

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def number(value: int) -> str:
    """Format a whole number with thousands separators."""
    return f"{value:,}"


def percent(part: int, whole: int) -> str:
    """Format a share as percent with two decimals, rounded down. So 100 % means all of it."""
    if whole == 0:
        return "\N{EN DASH}"
    share = (Decimal(part) * 100 / whole).quantize(Decimal("0.01"), ROUND_FLOOR)
    return f"{share} %"


def moment(value: datetime | None) -> Markup:
    """Format a time to the second, with its zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S UTC")


def stamp(value: datetime | None) -> Markup:
    """Format a time to the second, without its zone, for columns whose head names the zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S")


def day(value: datetime | None) -> Markup:
    """Format the UTC day of a time."""
    return _time(value, "%Y-%m-%d")


def span(duration: timedelta) -> str:
    """Format a duration in the largest unit (day to second) of which it has at least two."""
    seconds = int(abs(duration.total_seconds()))
    for name, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds // length:,} {name}s"
    return f"{seconds} second{'' if seconds == 1 else 's'}"


def milliseconds(value: float) -> str:
    """Format milliseconds: without decimals from 100 on, with one decimal below."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def spaced_hex(value: bytes | str) -> Markup:
    """Format bytes as pairs of hex digits with possible line breaks between them."""
    digits = value.hex() if isinstance(value, bytes) else value
    pairs = [digits[start : start + 2] for start in range(0, len(digits), 2)]
    return Markup(":<wbr>").join(escape(pair) for pair in pairs)


def parts(name: str) -> Markup:
    """Format a distinguished name (RFC 4514) with possible line breaks after its commas."""
    return Markup(",<wbr>").join(escape(each) for each in name.split(","))


def size(value: int) -> str:
    """Format a number of bytes in the largest fitting unit, from bytes to TiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    place = max(0, min(len(units) - 1, (max(value, 1).bit_length() - 1) // 10))
    return f"{value:,} bytes" if place == 0 else f"{value / 1024**place:,.1f} {units[place]}"


def _time(value: datetime | None, form: str) -> Markup:
    if value is None:
        return Markup("\N{EN DASH}")
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), utc.strftime(form)
    )
