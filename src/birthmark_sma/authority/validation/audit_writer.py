"""Write the audit rows of a judged batch, and add them to the counters.

Called by `validation.service` in the writer thread. Rows and counters are written in the caller's
transaction, so that they always agree (docs/adr/0006). On PostgreSQL one statement writes all of
it, because each call of the driver costs as much as judging several tokens. This module must never
commit, and its statements must be the same for PASS and FAIL.
"""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection

from birthmark_sma.authority.devices.activity import BusiestDevices
from birthmark_sma.authority.validation.audit_counters import floor_to_minute
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.portable_sql import as_sqlite_text
from birthmark_sma.storage.postgresql_driver import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    execute_blocking,
)

_WRITERS = 1 << 15  # the non-negative values of the column's type, smallint
_NOTHING = "{}"  # the JSON object without counts


class AuditWriter:
    """Writes audit rows and counters for one writer thread. It is owned by that thread."""

    def __init__(self) -> None:
        # Each writer has counter rows of its own, so that processes do not wait for each other.
        self._writer = secrets.randbelow(_WRITERS)
        self._busiest = BusiestDevices()

    def write(self, transaction: Connection, rows: Sequence[AuditRow]) -> None:
        """Write one or more audit rows and count them.

        All rows must have the same `validated_at`. The statements are the same for every verdict.
        """
        minute = floor_to_minute(rows[0].validated_at)
        passed = [row for row in rows if row.validation_result == "PASS"]
        # Before this transaction writes: the list in memory must never hold uncommitted rows.
        self._busiest.refresh(transaction, minute.date())
        figures = _Figures(
            minute=minute,
            writer=self._writer,
            reasons=json.dumps(Counter(row.reason for row in rows)),
            passes=Counter(row.device_serial for row in passed),
            pictures=Counter(
                row.device_serial for row in passed if row.caller is not None and row.repeat is None
            ),
            repeats=json.dumps(Counter(row.repeat for row in rows if row.repeat is not None)),
            least=self._busiest.least,
        )
        if transaction.dialect.name == "postgresql":
            risen = _write_on_postgresql(transaction, rows, figures)
        else:
            risen = _write_on_sqlite(transaction, rows, figures)
        self._busiest.admit(transaction, risen)


@dataclass(frozen=True, slots=True)
class _Figures:
    """The counts of one batch.

    `reasons` and `repeats` are JSON objects from name to number of rows. `passes` and `pictures`
    count rows by device serial. `pictures` leaves out passes without an access key and repeats. The
    statements return the devices that now have more than `least` passes on `day`.
    """

    minute: datetime
    writer: int
    reasons: str
    passes: Counter[str | None]
    pictures: Counter[str | None]
    repeats: str
    least: int

    @property
    def day(self) -> date:
        return self.minute.date()


# Lock order: rows of device_activity are updated in the order of their serials, which prevents a
# deadlock between two processes. Counter rows need no order, because each writer has its own.
# One statement of several CTEs: PostgreSQL runs each data-modifying CTE once, read or not.
_ON_POSTGRESQL = """
WITH appended AS (
    INSERT INTO validation_history (
        encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
        validated_at, request_ip, caller, repeat)
    SELECT * FROM unnest(
        $1::bytea[], $2::integer[], $3::integer[], $4::text[], $5::text[], $6::text[],
        $7::timestamptz[], $8::text[], $9::text[], $10::text[])
), counted AS (
    INSERT INTO validation_counters (minute, reason, writer, times)
    SELECT CAST($11::text AS timestamptz), key, CAST($12::text AS smallint), CAST(value AS bigint)
    FROM json_each_text($13::json)
    ON CONFLICT (minute, reason, writer)
    DO UPDATE SET times = validation_counters.times + excluded.times
), repeated AS (
    INSERT INTO repeat_counters (minute, repeat, writer, times)
    SELECT CAST($11::text AS timestamptz), key, CAST($12::text AS smallint), CAST(value AS bigint)
    FROM json_each_text($19::json)
    ON CONFLICT (minute, repeat, writer)
    DO UPDATE SET times = repeat_counters.times + excluded.times
), totalled AS (
    INSERT INTO running_totals (counted, name, writer, times)
    SELECT 'verdict', key, CAST($12::text AS smallint), CAST(value AS bigint)
    FROM json_each_text($13::json)
    UNION ALL
    SELECT 'repeat', key, CAST($12::text AS smallint), CAST(value AS bigint)
    FROM json_each_text($19::json)
    ON CONFLICT (counted, name, writer)
    DO UPDATE SET times = running_totals.times + excluded.times
), active AS (
    INSERT INTO device_activity (day, device_serial, passes, pictures)
    SELECT CAST($14::text AS date), serial, passes, pictures
    FROM unnest($15::text[], $16::integer[], $17::integer[]) AS new (serial, passes, pictures)
    ORDER BY serial
    ON CONFLICT (day, device_serial)
    DO UPDATE SET passes = device_activity.passes + excluded.passes,
        pictures = device_activity.pictures + excluded.pictures
    RETURNING device_serial, passes)
SELECT json_object_agg(device_serial, passes) FROM active WHERE passes > CAST($18::text AS bigint)
"""


def _write_on_postgresql(
    transaction: Connection, rows: Sequence[AuditRow], figures: _Figures
) -> dict[str, int]:
    serials_passed = list(figures.passes)
    columns = zip(*rows, strict=True)
    hashes, tables, indexes, results, reasons, serials, times, addresses, callers, repeats = columns
    written = execute_blocking(
        transaction,
        _ON_POSTGRESQL,
        (  # in the order of $1 to $19
            array_of_bytes(hashes),
            array_of_integers(tables),
            array_of_integers(indexes),
            array_of_text(results),
            array_of_text(reasons),
            array_of_text(serials),
            array_of_times(times),
            array_of_text(addresses),
            array_of_text(callers),
            array_of_text(repeats),
            figures.minute.isoformat().encode(),
            b"%d" % figures.writer,
            figures.reasons.encode(),
            figures.day.isoformat().encode(),
            array_of_text(serials_passed),
            array_of_integers([figures.passes[each] for each in serials_passed]),
            array_of_integers([figures.pictures[each] for each in serials_passed]),
            b"%d" % figures.least,
            figures.repeats.encode(),
        ),
    )
    risen: dict[str, int] = json.loads(written.get_value(0, 0) or b"{}")
    return risen


# One INSERT takes many rows, because each call of the driver may lose the interpreter's lock. Only
# five sizes exist, because SQLite's driver caches prepared statements by their text.
_APPEND = """
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip, caller, repeat)
VALUES """
_ROW = f"({', '.join('?' * len(AuditRow._fields))})"
_APPEND_ON_SQLITE = {size: _APPEND + ", ".join([_ROW] * size) for size in (256, 64, 16, 4, 1)}
# "WHERE true" before ON CONFLICT: without it, SQLite parses ON as a join condition of the SELECT.
_COUNT_ON_SQLITE = """
INSERT INTO validation_counters (minute, reason, writer, times)
SELECT ?, key, ?, value FROM json_each(?) WHERE true
ON CONFLICT (minute, reason, writer) DO UPDATE SET times = times + excluded.times
"""
_COUNT_REPEATS_ON_SQLITE = """
INSERT INTO repeat_counters (minute, repeat, writer, times)
SELECT ?, key, ?, value FROM json_each(?) WHERE true
ON CONFLICT (minute, repeat, writer) DO UPDATE SET times = times + excluded.times
"""
_TOTAL_ON_SQLITE = """
INSERT INTO running_totals (counted, name, writer, times)
SELECT ?, key, ?, value FROM json_each(?) WHERE true
ON CONFLICT (counted, name, writer) DO UPDATE SET times = times + excluded.times
"""
_COUNT_DEVICES_ON_SQLITE = """
INSERT INTO device_activity (day, device_serial, passes, pictures)
SELECT ?, key, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
ON CONFLICT (day, device_serial)
DO UPDATE SET passes = passes + excluded.passes, pictures = pictures + excluded.pictures
"""
_RISEN_ON_SQLITE = """
SELECT json_group_object(device_serial, passes) FROM device_activity
WHERE day = ? AND device_serial IN (SELECT key FROM json_each(?)) AND passes > ?
"""


def _write_on_sqlite(
    transaction: Connection, rows: Sequence[AuditRow], figures: _Figures
) -> dict[str, int]:
    start = 0
    while start < len(rows):
        # The largest size that fits: the sizes are in descending order and end with 1.
        size = next(size for size in _APPEND_ON_SQLITE if size <= len(rows) - start)
        values = [
            value
            for row in rows[start : start + size]
            for value in (*row[:6], as_sqlite_text(row.validated_at), *row[7:])
        ]
        transaction.exec_driver_sql(_APPEND_ON_SQLITE[size], tuple(values))
        start += size
    minute, day = as_sqlite_text(figures.minute), figures.day.isoformat()
    transaction.exec_driver_sql(_COUNT_ON_SQLITE, (minute, figures.writer, figures.reasons))
    transaction.exec_driver_sql(_TOTAL_ON_SQLITE, ("verdict", figures.writer, figures.reasons))
    if figures.repeats != _NOTHING:
        repeats = (minute, figures.writer, figures.repeats)
        transaction.exec_driver_sql(_COUNT_REPEATS_ON_SQLITE, repeats)
        transaction.exec_driver_sql(_TOTAL_ON_SQLITE, ("repeat", *repeats[1:]))
    active = json.dumps(
        {serial: (passes, figures.pictures[serial]) for serial, passes in figures.passes.items()},
        ensure_ascii=False,
    )
    transaction.exec_driver_sql(_COUNT_DEVICES_ON_SQLITE, (day, active))
    asked = (day, active, figures.least)
    risen: dict[str, int] = json.loads(
        transaction.exec_driver_sql(_RISEN_ON_SQLITE, asked).scalar_one()
    )
    return risen
