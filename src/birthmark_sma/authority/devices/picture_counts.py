"""Read the number of pictures that devices made, from `device_activity.pictures`.

`validation.audit_writer` counts them, `background.abuse_detection` reads them. A picture is a PASS
for a caller with an access key that is no repeat. This module must only read.
"""

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.portable_sql import is_any_of
from birthmark_sma.storage.schema import device_activity

_activity = device_activity.c


def devices_above(
    connection: Connection, day: date, least: int, *, after: str, limit: int
) -> list[tuple[str, int]]:
    """Return the devices with more than `least` pictures on a day, with their number of pictures.

    Returns up to `limit` devices with serials above `after`, in the order of serials.
    """
    rows = connection.execute(
        select(_activity.device_serial, _activity.pictures)
        .where(
            _activity.day == day,
            _activity.device_serial > after,
            _activity.pictures > least,
        )
        .order_by(_activity.device_serial)
        .limit(limit)
    )
    return [(row.device_serial, row.pictures) for row in rows]


def count_pictures(
    connection: Connection, serials: Sequence[str], days: Sequence[date]
) -> dict[str, tuple[int, int]]:
    """Return by serial the number of pictures on `days`, and the number of active days among them.

    A day is active if the device made a picture on it; other passes do not count. Devices without
    an active day are missing.
    """
    rows = connection.execute(
        select(
            _activity.device_serial,
            func.sum(_activity.pictures).label("pictures"),
            func.count().label("days"),
        )
        .where(
            is_any_of(connection, _activity.day, days),
            is_any_of(connection, _activity.device_serial, serials),
            _activity.pictures > 0,
        )
        .group_by(_activity.device_serial)
    )
    return {row.device_serial: (int(row.pictures), row.days) for row in rows}
