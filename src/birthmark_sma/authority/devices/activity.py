"""How active each device is, a day at a time (UTC), and which devices are the most active.

Finding the ten busiest of a million devices would mean sorting them all. So each day has a short
list, `busiest_devices`: whoever counts a device whose passes have risen past those of the 25th on
the list puts it there. Few enter it, and the figures themselves stay in `device_activity` alone.
"""

import heapq
import time
from collections.abc import Mapping, Sequence
from datetime import date

from sqlalchemy import Connection, delete, func, select

from birthmark_sma.storage.dialects import insert_or_skip, is_any_of
from birthmark_sma.storage.schema import busiest_devices, device_activity

LISTED = 25
"""How many devices of a day are listed; more than anybody asks for, as some tie."""

_TRIMMED_BEYOND = 2 * LISTED
_READ_AGAIN_SECONDS = 60.0  # others, which share the database, change the list too

_activity = device_activity.c
_busiest = busiest_devices.c


class BusiestDevices:
    """The list of the day, for one writer thread.

    What it remembers of the list is only ever read from the database at the start of a transaction,
    so it is never what a transaction wrote that was rolled back afterwards.
    """

    def __init__(self) -> None:
        self.least = 0
        """A device must have more passes than this to be listed."""
        self._day: date | None = None
        self._listed: frozenset[str] = frozenset()
        self._surplus: frozenset[str] = frozenset()  # those of the list that it is too long by
        self._read_at = -_READ_AGAIN_SECONDS

    def refresh(self, connection: Connection, day: date) -> None:
        """Read the list of a day, unless that was done a short while ago."""
        if self._day != day or time.monotonic() - self._read_at >= _READ_AGAIN_SECONDS:
            self._read(connection, day)

    def admit(self, transaction: Connection, risen: Mapping[str, int]) -> None:
        """List those devices that are not listed, of some whose passes are more than `least`."""
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
        self.least = ranked[LISTED - 1][1] if len(ranked) >= LISTED else 0
        self._read_at = time.monotonic()

    def _list(self, transaction: Connection, day: date, newcomers: Sequence[str]) -> None:
        """Put devices on the list, and strike off those that have fallen far behind.

        Others do the same at the same time. Nobody waits for anybody in a circle: everyone adds in
        the order of names, and strikes off last, and then only what nobody else is holding.
        """
        self._read_at = -_READ_AGAIN_SECONDS  # the next batch shall see who else has come
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
    """Return the listed devices of these days and their passes on all of them, busiest first.

    Ties go by serial.
    """
    listed = connection.execute(
        select(_busiest.device_serial).distinct().where(is_any_of(connection, _busiest.day, days))
    ).scalars()
    # Two questions and not a join: no planner can then think of reading all of the activity.
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
    """Return the passes of one device on those of these days on which it had any."""
    rows = connection.execute(
        select(_activity.day, _activity.passes).where(
            is_any_of(connection, _activity.day, days), _activity.device_serial == device_serial
        )
    )
    return {row.day: row.passes for row in rows}
