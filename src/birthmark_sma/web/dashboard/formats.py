"""How figures, times and bytes are written on the pages."""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal

from markupsafe import Markup, escape

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def number(value: int) -> str:
    """Write a whole number with its thousands apart."""
    return f"{value:,}"


def percent(part: int, whole: int) -> str:
    """Write a share. It is never rounded up: 100 % means all of it."""
    if whole == 0:
        return "\N{EN DASH}"
    share = (Decimal(part) * 100 / whole).quantize(Decimal("0.01"), ROUND_FLOOR)
    return f"{share} %"


def moment(value: datetime | None) -> Markup:
    """Write a time, to the second and with its zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S UTC")


def stamp(value: datetime | None) -> Markup:
    """Write a time to the second where the head of a column names the zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S")


def day(value: datetime | None) -> Markup:
    """Write the day of a time in UTC, where its hour is of no interest."""
    return _time(value, "%Y-%m-%d")


def span(duration: timedelta) -> str:
    """Write how long something takes, in the largest unit that it has two of."""
    seconds = int(abs(duration.total_seconds()))
    for name, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds // length:,} {name}s"
    return f"{seconds} second{'' if seconds == 1 else 's'}"


def milliseconds(value: float) -> str:
    """Write milliseconds with as many places as say something."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def spaced_hex(value: bytes | str) -> Markup:
    """Write bytes as pairs of hex digits that a line may be broken between."""
    digits = value.hex() if isinstance(value, bytes) else value
    pairs = [digits[start : start + 2] for start in range(0, len(digits), 2)]
    return Markup(":<wbr>").join(escape(pair) for pair in pairs)


def parts(name: str) -> Markup:
    """Write a distinguished name (RFC 4514) so that a line may be broken behind its commas."""
    return Markup(",<wbr>").join(escape(each) for each in name.split(","))


def size(value: int) -> str:
    """Write a number of bytes in the unit that fits."""
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
