"""Counts of verdicts, kept in the transaction of the audit rows that they count.

Whoever asks for figures reads these and never the audit trail, which may have a hundred million
rows.
"""

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select

from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.activity import DeviceActivity
from birthmark_sma.storage.dialects import hour_of
from birthmark_sma.storage.postgresql import at_once
from birthmark_sma.storage.schema import as_sqlite_text, validation_counters

_table = validation_counters.c
_WRITERS = 1 << 15  # as many as a smallint has


class ValidationCounters:
    """Counts what one writer thread judged."""

    def __init__(self) -> None:
        self._writer = secrets.randbelow(_WRITERS)
        self._activity = DeviceActivity()

    def record(
        self, transaction: Connection, at: datetime, judged: Iterable[tuple[Reason, str | None]]
    ) -> None:
        """Count a batch that was judged at one time: the reason and the device of each token.

        Two or three statements, whatever the size of the batch, and a few more where a device
        becomes one of the busiest. A batch without a PASS costs the first alone.
        """
        reasons: Counter[str] = Counter()
        passes: dict[str, int] = {}
        for (reason, device_serial), times in Counter(judged).items():
            reasons[reason.value] += times
            if reason is Reason.GENUINE and device_serial is not None:
                passes[device_serial] = times
        minute = floor_to_minute(at)
        _add(transaction, minute, reasons, self._writer)
        if passes:
            self._activity.record(transaction, minute.date(), passes)


# Rows are taken in the order of their names, so that two programs never wait for each other.
_ON_POSTGRESQL = """
INSERT INTO validation_counters (minute, reason, writer, times)
SELECT CAST($1::text AS timestamptz), key, CAST($2::text AS smallint), CAST(value AS bigint)
FROM json_each_text($3::json) ORDER BY key
ON CONFLICT (minute, reason, writer)
DO UPDATE SET times = validation_counters.times + excluded.times
"""
_ON_SQLITE = """
INSERT INTO validation_counters (minute, reason, writer, times)
SELECT ?, key, ?, value FROM json_each(?) WHERE true ORDER BY key
ON CONFLICT (minute, reason, writer) DO UPDATE SET times = times + excluded.times
"""


def _add(
    transaction: Connection, minute: datetime, reasons: Mapping[str, int], writer: int
) -> None:
    counts = json.dumps(reasons)
    if transaction.dialect.name == "postgresql":
        row = (minute.isoformat().encode(), b"%d" % writer, counts.encode())
        at_once(transaction, _ON_POSTGRESQL, row)
    else:
        transaction.exec_driver_sql(_ON_SQLITE, (as_sqlite_text(minute), writer, counts))


def count_by_hour(connection: Connection, since: datetime) -> dict[datetime, Counter[Reason]]:
    """Return how often each reason was given in each hour (UTC) from the minute of `since` on.

    The first hour counts from that minute only; hours in which nothing happened are left out.
    """
    hour = hour_of(connection, _table.minute)
    rows = connection.execute(
        select(hour, _table.reason, func.sum(_table.times))
        .where(_table.minute >= floor_to_minute(since))
        .group_by(hour, _table.reason)
    )
    hours: dict[datetime, Counter[Reason]] = {}
    for begins, reason, times in rows:
        hours.setdefault(begins, Counter())[Reason(reason)] = int(times)
    return hours


def floor_to_minute(time: datetime) -> datetime:
    """Return the beginning of the minute, in UTC."""
    return time.astimezone(UTC).replace(second=0, microsecond=0)


def floor_to_hour(time: datetime) -> datetime:
    """Return the beginning of the hour, in UTC."""
    return floor_to_minute(time).replace(minute=0)


def hours_until(time: datetime, count: int) -> list[datetime]:
    """Return the beginnings of as many hours (UTC), oldest first; the last one still runs."""
    last = floor_to_hour(time)
    return [last - timedelta(hours=ago) for ago in reversed(range(count))]
