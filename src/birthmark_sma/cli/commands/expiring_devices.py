"""`sma devices list --expiring-within`: list devices in the order in which certificates end.

`commands/devices.py` calls it.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.output import print_json, print_line, print_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from birthmark_sma.authority.devices.certificates_store import ExpiringDevice

_DAY = timedelta(days=1)


def list_expiring(
    connection: "Connection", within: str, *, limit: int, after: str | None, as_json: bool
) -> None:
    """Print a page of the devices whose certificate ends within a time, and how to get the next.

    `after` is the end and the serial of a device, as the page before printed them. Raises
    BadParameter for a duration or an `after` of another form.
    """
    from birthmark_sma.authority.devices import certificates_store
    from birthmark_sma.storage.portable_sql import database_time

    period = parse_duration(within, "--expiring-within", may_be_zero=True)
    now = database_time(connection)
    # One more than a page, to know whether there is a next page.
    found = certificates_store.list_expiring(
        connection, now + period, limit=limit + 1, after=None if after is None else _parse(after)
    )
    shown = found[:limit]
    following = _place(shown[-1]) if len(found) > limit else None
    if as_json:
        print_json({"devices": [each._asdict() for each in shown], "next_cursor": following})
        return
    if not shown:
        print_line(f"No certificate of a device ends within {within}.")
        return
    rows = [
        [
            each.device_serial,
            each.device_family,
            each.status.value,
            f"{each.certificate_expires_at:%Y-%m-%d %H:%M}",
            _left(each.certificate_expires_at - now),
        ]
        for each in shown
    ]
    print_table(["DEVICE", "FAMILY", "STATUS", "EXPIRES (UTC)", "LEFT"], rows, numbers={"LEFT"})
    if following is not None:
        print_line(f"\nThere are more. For the next page: --after '{following}'")


def _left(time: timedelta) -> str:
    if time <= timedelta(0):
        return "expired"
    return f"{time // _DAY:,} d" if time >= _DAY else f"{time // timedelta(hours=1)} h"


def _place(device: "ExpiringDevice") -> str:
    """Return where the next page begins. Certificates end at full seconds."""
    return f"{device.certificate_expires_at:%Y-%m-%dT%H:%M:%SZ} {device.device_serial}"


def _parse(after: str) -> tuple[datetime, str]:
    end, _, serial = after.partition(" ")
    try:
        time = datetime.fromisoformat(end)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or not serial:
        raise typer.BadParameter(
            "With --expiring-within, give what the page before printed: the time and the serial,"
            " such as '2028-11-30T01:02:03Z camera-7'.",
            param_hint="--after",
        )
    return time.astimezone(UTC), serial
