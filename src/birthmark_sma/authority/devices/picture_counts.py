"""How many pictures devices made: `device_activity.pictures`, which `storage.trail` counts."""

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.dialects import is_any_of
from birthmark_sma.storage.schema import device_activity

_activity = device_activity.c


def devices_above(
    connection: Connection, day: date, least: int, *, after: str, limit: int
) -> list[tuple[str, int]]:
    """Return devices with more than `least` pictures on a day, and how many, by serial.

    Those behind the serial `after`, up to `limit`.
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
    """Return, by serial, how many pictures devices made on some days, and on how many of these.

    A day without pictures is none on which a device was active, whatever strangers sent. Devices
    without any such day are left out.
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
