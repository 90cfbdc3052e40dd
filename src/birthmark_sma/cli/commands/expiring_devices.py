"""`sma devices list --expiring-within`: list devices in the order in which certificates end.

`commands/devices.py` calls it.
"""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import typer

from birthmark_sma.authority.representations.places import parse_expiry
from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.output import print_line, print_object, print_table, quoted

if TYPE_CHECKING:
    from birthmark_sma.cli.administration.interface import Administration

_DAY = timedelta(days=1)


def list_expiring(
    authority: "Administration", within: str, *, limit: int, after: str | None, as_json: bool
) -> None:
    """Print a page of the devices whose certificate ends within a time, and how to get the next.

    `after` is the end and the serial of a device, as the page before printed them. Raises
    BadParameter for a duration or an `after` of another form.
    """
    period = parse_duration(within, "--expiring-within", may_be_zero=True)
    now = authority.now()
    page = authority.list_expiring(
        now + period, limit=limit, after=None if after is None else _parse(after)
    )
    if as_json:
        print_object(page)
        return
    if not page.devices:
        print_line(f"No certificate of a device ends within {within}.")
        return
    rows = [
        [
            each.device_serial,
            each.device_family,
            each.status,
            f"{ends:%Y-%m-%d %H:%M}",
            _left(ends - now),
        ]
        for each in page.devices
        if (ends := each.certificate_expires_at) is not None
    ]
    print_table(["DEVICE", "FAMILY", "STATUS", "EXPIRES (UTC)", "LEFT"], rows, numbers={"LEFT"})
    if page.next_cursor is not None:
        print_line(f"\nThere are more. For the next page: --after {quoted(page.next_cursor)}")


def _left(time: timedelta) -> str:
    if time <= timedelta(0):
        return "expired"
    return f"{time // _DAY:,} d" if time >= _DAY else f"{time // timedelta(hours=1)} h"


def _parse(after: str) -> tuple[datetime, str]:
    place = parse_expiry(after)
    if place is None:
        raise typer.BadParameter(
            "With --expiring-within, give what the page before printed: the time and the serial,"
            " such as '2028-11-30T01:02:03Z camera-7'.",
            param_hint="--after",
        )
    return place
