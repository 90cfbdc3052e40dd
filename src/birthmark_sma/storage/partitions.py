"""The partitions of `validation_history` on PostgreSQL: one a UTC day, made ahead, dropped whole.

A row whose day has no partition lies in the default partition, `UNFORESEEN`: none is ever refused
for a clock that went wrong.

To make and to drop a partition locks the table for some milliseconds. Where others hold it, as a
long query does, whoever validates waits behind whoever waits for the lock: so nothing here waits
longer than `_PATIENCE`. It gives up with DatabaseUnavailableError, to be tried again.
"""

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, TableClause, column, delete, insert, select, table, text

from birthmark_sma.storage.advisory_locks import AdvisoryLock, wait_for_lock
from birthmark_sma.storage.schema import UtcDateTime, validation_history

DAYS_AHEAD = 7
UNFORESEEN = "validation_history_unforeseen"
"""The default partition."""

_PATIENCE = "200ms"


class Partition(NamedTuple):
    """A partition: the times it is for, and about how much is in it.

    `begins` is None where it has no beginning; both are None for the default partition. `rows` is
    the database's own estimate, `size` is in bytes, with indexes.
    """

    name: str
    begins: datetime | None
    ends: datetime | None
    rows: int
    size: int

    def covers(self, begins: datetime, ends: datetime) -> bool:
        """Say whether rows of this time belong into this partition rather than the default."""
        if self.ends is None:
            return False
        return (self.begins is None or self.begins <= begins) and ends <= self.ends


def list_partitions(connection: Connection) -> list[Partition]:
    """Return every partition, oldest first, the default last; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    zoned = {"begins": UtcDateTime(), "ends": UtcDateTime()}
    return [Partition(*row) for row in connection.execute(text(_LIST).columns(**zoned))]


def create_future_partitions(transaction: Connection, today: date) -> list[str]:
    """Make the partitions of today and the days ahead that are missing; return their names.

    Rows of these days that lie in the default partition move to where they belong. Several programs
    take turns. On SQLite, which has no partitions, there is nothing to do.
    """
    missing = missing_days(transaction, today)
    if not missing:
        return []
    _wait_for_locks_no_longer_than(transaction, "2s")
    wait_for_lock(transaction, AdvisoryLock.PARTITIONS)
    _wait_for_locks_no_longer_than(transaction, _PATIENCE)
    return [_make(transaction, day) for day in missing_days(transaction, today)]


def drop(transaction: Connection, name: str) -> None:
    """Drop a partition, and all rows in it.

    DETACH CONCURRENTLY would hold up nobody, but is not to be had beside a default partition.
    """
    _wait_for_locks_no_longer_than(transaction, _PATIENCE)
    quoted = transaction.dialect.identifier_preparer.quote(name)  # an operator may have named it
    transaction.exec_driver_sql(f"DROP TABLE IF EXISTS {quoted}")


def _wait_for_locks_no_longer_than(transaction: Connection, patience: str) -> None:
    transaction.execute(text(f"SET LOCAL lock_timeout = '{patience}'"))


def missing_days(connection: Connection, today: date) -> list[date]:
    """Return which of today and the days ahead have no partition; none on SQLite."""
    if connection.dialect.name != "postgresql":
        return []
    present = list_partitions(connection)
    days = [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)]
    return [day for day in days if not any(each.covers(*_span(day)) for each in present)]


def _make(transaction: Connection, day: date) -> str:
    begins, ends = _span(day)
    name = f"{validation_history.name}_{day:%Y%m%d}"
    transaction.execute(text(f"CREATE TABLE {name} (LIKE {validation_history.name})"))
    # Nobody may be about to put a row of this day into the default partition. It is the trail
    # itself that is locked: who waited for the default would find it closed to the row, and fail.
    transaction.execute(text(f"LOCK TABLE ONLY {validation_history.name} IN EXCLUSIVE MODE"))
    _move(transaction, name, begins, ends)
    transaction.execute(
        text(
            f"ALTER TABLE {validation_history.name} ATTACH PARTITION {name}"
            f" FOR VALUES FROM ('{begins}') TO ('{ends}')"
        )
    )
    return name


def _move(transaction: Connection, name: str, begins: datetime, ends: datetime) -> None:
    """Move the rows of a time from the default partition to a table that is not attached yet."""
    unforeseen, day = _like_the_trail(UNFORESEEN), _like_the_trail(name)
    moved = (
        delete(unforeseen)
        .where(unforeseen.c.validated_at >= begins, unforeseen.c.validated_at < ends)
        .returning(*unforeseen.c)
        .cte("moved")
    )
    transaction.execute(insert(day).from_select(list(day.c), select(moved)))


def _like_the_trail(name: str) -> TableClause:
    return table(name, *(column(each.name, each.type) for each in validation_history.columns))


def _span(day: date) -> tuple[datetime, datetime]:
    begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begins, begins + timedelta(days=1)


# PostgreSQL tells bounds as text, in the style and zone of the session that asks, which therefore
# reads them rightly again.
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
