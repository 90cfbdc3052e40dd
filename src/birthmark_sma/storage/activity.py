"""How active each device is, a day at a time (UTC), and which devices are the most active.

Finding the ten busiest of a million devices would mean sorting them all. So each day has a short
list, `busiest_devices`: whoever counts a device whose passes have risen past those of the 25th on
the list puts it there. Few enter it, and the figures themselves stay in `device_activity` alone.
"""

import heapq
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date

from sqlalchemy import Connection, delete, func, select

from birthmark_sma.storage.dialects import insert_or_skip, is_any_of
from birthmark_sma.storage.postgresql import at_once
from birthmark_sma.storage.schema import busiest_devices, device_activity

LISTED = 25
"""How many devices of a day are listed; more than anybody asks for, as some tie."""

_TRIMMED_BEYOND = 2 * LISTED
_READ_AGAIN_SECONDS = 60.0  # others, which share the database, change the list too

_activity = device_activity.c
_busiest = busiest_devices.c


class DeviceActivity:
    """Counts the passes of devices, for one writer thread.

    What it remembers of the list is only ever read from the database at the start of a transaction,
    so it is never what a transaction wrote that was rolled back afterwards.
    """

    def __init__(self) -> None:
        self._day: date | None = None
        self._listed: frozenset[str] = frozenset()
        self._surplus: frozenset[str] = frozenset()  # those of the list that it is too long by
        self._least = 0  # what a device must pass to be listed
        self._read_at = -_READ_AGAIN_SECONDS

    def record(self, transaction: Connection, day: date, passes: Mapping[str, int]) -> None:
        """Add to the passes of devices on a day. `passes` is not empty."""
        if self._day != day or time.monotonic() - self._read_at >= _READ_AGAIN_SECONDS:
            self._read(transaction, day)
        above = _add(transaction, day, passes, self._least)
        risen = {name: n for name, n in above.items() if name not in self._listed}
        if risen:
            self._list(transaction, day, heapq.nlargest(LISTED, risen, key=risen.__getitem__))

    def _read(self, connection: Connection, day: date) -> None:
        ranked = most_active(connection, [day])
        self._day = day
        names = [device_serial for device_serial, _ in ranked]
        self._listed = frozenset(names[:_TRIMMED_BEYOND])
        self._surplus = frozenset(names[_TRIMMED_BEYOND:])
        self._least = ranked[LISTED - 1][1] if len(ranked) >= LISTED else 0
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


# Devices are taken in the order of their names, so that two programs never wait for each other.
_ON_POSTGRESQL = """
WITH counted AS (
    INSERT INTO device_activity (day, device_serial, passes)
    SELECT CAST($1::text AS date), key, CAST(value AS bigint)
    FROM json_each_text($2::json) ORDER BY key
    ON CONFLICT (day, device_serial) DO UPDATE SET passes = device_activity.passes + excluded.passes
    RETURNING device_serial, passes)
SELECT json_object_agg(device_serial, passes) FROM counted WHERE passes > CAST($3::text AS bigint)
"""
_ON_SQLITE = """
INSERT INTO device_activity (day, device_serial, passes)
SELECT ?, key, value FROM json_each(?) WHERE true ORDER BY key
ON CONFLICT (day, device_serial) DO UPDATE SET passes = passes + excluded.passes
"""
_ABOVE_ON_SQLITE = """
SELECT json_group_object(device_serial, passes) FROM device_activity
WHERE day = ? AND device_serial IN (SELECT key FROM json_each(?)) AND passes > ?
"""


def _add(
    transaction: Connection, day: date, passes: Mapping[str, int], least: int
) -> dict[str, int]:
    """Add passes; return what those have now that have more than `least`, by device serial."""
    counts = json.dumps(passes, ensure_ascii=False)
    if transaction.dialect.name == "postgresql":
        row = (day.isoformat().encode(), counts.encode(), b"%d" % least)
        above = at_once(transaction, _ON_POSTGRESQL, row).get_value(0, 0) or b"{}"
    else:
        named = (day.isoformat(), counts)
        transaction.exec_driver_sql(_ON_SQLITE, named)
        above = transaction.exec_driver_sql(_ABOVE_ON_SQLITE, (*named, least)).scalar_one()
    read: dict[str, int] = json.loads(above)
    return read


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
