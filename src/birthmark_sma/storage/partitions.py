"""Create and drop the daily partitions of the audit log on PostgreSQL (docs/adr/0006).

`validation_history` has one partition for each UTC day, created `DAYS_AHEAD` days in advance. A
row whose day has no partition goes to the default partition, `UNFORESEEN`, so a wrong clock never
makes an INSERT fail. Background tasks and migrations call this module.

Creating and dropping a partition locks the table for some milliseconds. If a long query holds the
table, every validation queues behind the waiting lock request. So this module never waits for the
table longer than `_PATIENCE`; it raises DatabaseUnavailableError, and the caller tries again later.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, func, select, text

from birthmark_sma.storage.locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.portable_sql import UtcDateTime

DAYS_AHEAD = 7
UNFORESEEN = "validation_history_unforeseen"
"""The name of the default partition."""

_PATIENCE = "200ms"  # lock_timeout: for so long validations may queue behind our lock request


class Partition(NamedTuple):
    """A partition with its range of times and its approximate size.

    `begins` is inclusive, or None if the range has no beginning; `ends` is exclusive. Both are None
    for the default partition. `rows` is an estimate of PostgreSQL, `size` is in bytes and includes
    indexes.
    """

    name: str
    begins: datetime | None
    ends: datetime | None
    rows: int
    size: int

    def covers(self, begins: datetime, ends: datetime) -> bool:
        """Return whether this partition covers the whole range. The default one covers nothing."""
        if self.ends is None:
            return False
        return (self.begins is None or self.begins <= begins) and ends <= self.ends


def list_partitions(connection: Connection) -> list[Partition]:
    """Return all partitions, oldest first and the default last. On SQLite the list is empty."""
    if connection.dialect.name != "postgresql":
        return []
    zoned = {"begins": UtcDateTime(), "ends": UtcDateTime()}
    return [Partition(*row) for row in connection.execute(text(_LIST).columns(**zoned))]


def create_future_partitions(transaction: Connection, today: date) -> list[str]:
    """Create the missing partitions of today and the next `DAYS_AHEAD` days; return their names.

    See `create_partitions`.
    """
    return create_partitions(transaction, _coming(today))


def create_partitions(transaction: Connection, days: Sequence[date]) -> list[str]:
    """Create the missing partitions of these days; return their names.

    Rows of these days in the default partition move to the new partitions. An advisory lock lets
    one process at a time do this. On SQLite this does nothing and returns an empty list. Raises
    DatabaseUnavailableError if a lock is not free in time.
    """
    if not _missing(transaction, days):
        return []
    # No validation waits for this advisory lock, so it may take longer than a lock on the table.
    _wait_for_locks_no_longer_than(transaction, "2s")
    wait_for_lock(transaction, AdvisoryLock.PARTITIONS)
    _wait_for_locks_no_longer_than(transaction, _PATIENCE)
    # Queried again under the lock: another process may have created some of them meanwhile.
    return [_make(transaction, day) for day in _missing(transaction, days)]


def drop(transaction: Connection, name: str) -> None:
    """Drop a partition and all its rows, if it exists.

    Raises DatabaseUnavailableError if the lock on the table is not free within `_PATIENCE`.
    """
    # DETACH CONCURRENTLY would need no such lock, but PostgreSQL refuses it for a table that has a
    # default partition.
    _wait_for_locks_no_longer_than(transaction, _PATIENCE)
    quoted = transaction.dialect.identifier_preparer.quote(name)  # operators can create partitions
    transaction.exec_driver_sql(f"DROP TABLE IF EXISTS {quoted}")


def _wait_for_locks_no_longer_than(transaction: Connection, patience: str) -> None:
    transaction.execute(text(f"SET LOCAL lock_timeout = '{patience}'"))


def missing_days(connection: Connection, today: date) -> list[date]:
    """Return the days, of today and the next `DAYS_AHEAD`, without a partition; [] on SQLite."""
    return _missing(connection, _coming(today))


def _coming(today: date) -> list[date]:
    return [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)]


def _missing(connection: Connection, days: Sequence[date]) -> list[date]:
    if connection.dialect.name != "postgresql":
        return []
    present = list_partitions(connection)
    return [day for day in days if not any(each.covers(*_span(day)) for each in present)]


def _make(transaction: Connection, day: date) -> str:
    # The function has the rights of its owner, which a server need not have (migration 0016).
    created = transaction.execute(select(func.create_audit_partition(day)))
    return str(created.scalar_one())


def _span(day: date) -> tuple[datetime, datetime]:
    begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begins, begins + timedelta(days=1)


# PostgreSQL returns bounds as text in the date style and time zone of the session. The same session
# parses them with ::timestamptz, so they are right in any style and zone.
_LIST = r"""
SELECT relname, begins, ends,
       greatest(reltuples, pg_stat_get_live_tuples(oid), 0)::bigint AS rows,
       pg_total_relation_size(oid) AS size
FROM (
    SELECT child.oid, child.relname, child.reltuples,
           (regexp_match(bound, 'FROM \(''([^'']*)''\)'))[1]::timestamptz AS begins,
           (regexp_match(bound, 'TO \(''([^'']*)''\)'))[1]::timestamptz AS ends
    FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    CROSS JOIN LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound
    WHERE inhparent = to_regclass('validation_history')
) AS partitions
ORDER BY ends NULLS LAST, relname
"""
