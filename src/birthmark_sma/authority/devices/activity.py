"""Keep the list of each day's busiest devices, and read the activity of devices by day (UTC).

`validation.activity_counter` counts passes and pictures, and updates the list. Statistics and the
dashboard read the list, `background.abuse_detection` reads the pictures: a picture is a PASS for a
caller with an access key that is no repeat.

To find the ten busiest devices must never need a sort of all devices. So each day has a short list,
`busiest_devices`. A device is added to it when its passes rise above those of the 25th device on
the list (docs/adr/0006). The counts themselves are in `device_activity` only.
"""

import heapq
import time
from collections.abc import Mapping, Sequence
from datetime import date
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select

from birthmark_sma.storage.portable_sql import insert_or_skip, is_any_of
from birthmark_sma.storage.schema.activity import busiest_devices, device_activity

LISTED = 25
"""The number of devices on a day's list. It is more than any page shows, because of ties."""

_TRIMMED_BEYOND = 2 * LISTED  # a longer list is cut to this length
_READ_AGAIN_SECONDS = 60.0  # other processes on the same database change the list as well

_activity = device_activity.c
_busiest = busiest_devices.c


class DeviceCount(NamedTuple):
    """The activity of a device on a day. The fields are columns of `device_activity`."""

    passes: int
    pictures: int


class BusiestDevices:
    """A cache of the day's list, owned by one thread.

    The cache is filled only from the database at the start of a transaction. So it never holds rows
    of a transaction that was rolled back.
    """

    def __init__(self) -> None:
        self.least = 0
        """The number of passes that a device must exceed to enter the list."""
        self._day: date | None = None
        self._listed: frozenset[str] = frozenset()
        self._surplus: frozenset[str] = frozenset()  # the devices beyond _TRIMMED_BEYOND
        self._read_at = -_READ_AGAIN_SECONDS

    def refresh(self, connection: Connection, day: date) -> None:
        """Read the list of `day`, unless it was read less than 60 seconds ago.

        Call this before the transaction writes anything.
        """
        if self._day != day or time.monotonic() - self._read_at >= _READ_AGAIN_SECONDS:
            self._read(connection, day)

    def admit(self, transaction: Connection, risen: Mapping[str, int]) -> None:
        """Add the devices of `risen` that are not listed. Each has more than `least` passes."""
        new = {name: passes for name, passes in risen.items() if name not in self._listed}
        if new and self._day is not None:
            newcomers = heapq.nlargest(LISTED, new, key=new.__getitem__)
            self._list(transaction, self._day, newcomers)

    def _read(self, connection: Connection, day: date) -> None:
        ranked = most_active(connection, [day])
        self._day = day
        names = [device_serial for device_serial, _ in ranked]
        self._listed = frozenset(names[:_TRIMMED_BEYOND])
        self._surplus = frozenset(names[_TRIMMED_BEYOND:])
        # While the list is short, every device with a pass enters it.
        self.least = ranked[LISTED - 1][1] if len(ranked) >= LISTED else 0
        self._read_at = time.monotonic()

    def _list(self, transaction: Connection, day: date, newcomers: Sequence[str]) -> None:
        """Add devices to the list, and delete those beyond its maximum length.

        Other processes do the same at the same time. Lock order: every process inserts in the order
        of serials, then deletes, and skips rows that another one has locked (SKIP LOCKED). This
        prevents a deadlock.
        """
        self._read_at = -_READ_AGAIN_SECONDS  # so that the next batch reads the changed list
        transaction.execute(
            insert_or_skip(transaction, busiest_devices),
            [{"day": day, "device_serial": name} for name in sorted(newcomers)],
        )
        surplus = sorted(self._surplus.difference(newcomers))
        if surplus:
            held = (
                select(_busiest.device_serial)
                .where(
                    _busiest.day == day,
                    is_any_of(transaction, _busiest.device_serial, surplus),
                )
                .with_for_update(skip_locked=True)
            )
            transaction.execute(
                delete(busiest_devices).where(_busiest.day == day, _busiest.device_serial.in_(held))
            )


def most_active(
    connection: Connection, days: Sequence[date], *, limit: int | None = None
) -> list[tuple[str, int]]:
    """Return the devices on the lists of `days` with their passes on all these days, busiest first.

    Devices with equal passes are in the order of their serials. `limit` is the maximum number of
    devices, None for all.
    """
    listed = connection.execute(
        select(_busiest.device_serial).distinct().where(is_any_of(connection, _busiest.day, days))
    ).scalars()
    # Two queries instead of a join: with a join, a planner may choose to read all activity.
    passes = func.sum(_activity.passes).label("passes")
    rows = connection.execute(
        select(_activity.device_serial, passes)
        .where(
            is_any_of(connection, _activity.day, days),
            is_any_of(connection, _activity.device_serial, list(listed)),
        )
        .group_by(_activity.device_serial)
        .order_by(passes.desc(), _activity.device_serial)
        .limit(limit)
    )
    return [(row.device_serial, int(row.passes)) for row in rows]


def passes_by_day(
    connection: Connection, device_serial: str, days: Sequence[date]
) -> dict[date, int]:
    """Return the passes of one device by day. Days without passes are missing."""
    rows = connection.execute(
        select(_activity.day, _activity.passes).where(
            is_any_of(connection, _activity.day, days), _activity.device_serial == device_serial
        )
    )
    return {row.day: row.passes for row in rows}


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
