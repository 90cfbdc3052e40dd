"""SQL for deleting old rows of the audit trail and its counters.

Called by `retention`, and by `sma doctor` to find what is overdue. A call must delete a limited
number of rows, so that a validation waits for one short transaction at most.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Connection,
    Date,
    Select,
    Table,
    TableClause,
    and_,
    column,
    delete,
    func,
    select,
    table,
    tuple_,
)

from birthmark_sma.storage.partitions import Partition
from birthmark_sma.storage.portable_sql import choose
from birthmark_sma.storage.schema.activity import busiest_devices, device_activity, device_flags
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    validation_counters,
    validation_history,
)


class PrunableTable(NamedTuple):
    """A table, the column with the date or time of its rows, and those that identify a row.

    Dates and times are in UTC.
    """

    table: TableClause
    age: ColumnClause[Any]
    key: tuple[ColumnClause[Any], ...]


def _prunable(table: Table, age: ColumnClause[Any]) -> PrunableTable:
    return PrunableTable(table, age, tuple(table.primary_key))


FIGURES = (
    _prunable(validation_counters, validation_counters.c.minute),
    _prunable(device_activity, device_activity.c.day),
    _prunable(busiest_devices, busiest_devices.c.day),
    _prunable(device_flags, device_flags.c.day),
    _prunable(repeat_counters, repeat_counters.c.minute),
)
"""The counters and flags that are derived from the audit trail, and are deleted with it."""


def split_by_age(
    partitions: Sequence[Partition], before: datetime
) -> tuple[list[Partition], list[PrunableTable]]:
    """Return the partitions that end at or before `before`, and the tables with some older rows.

    On SQLite there are no partitions, so the audit trail is one such table.
    """
    if not partitions:
        return [], [_prunable(validation_history, validation_history.c.validated_at)]
    whole = [each for each in partitions if each.ends is not None and each.ends <= before]
    partly = [
        each for each in partitions if each not in whole and not _begins_at_or_after(each, before)
    ]
    return whole, [_trail_in(partition) for partition in partly]


def delete_some(
    transaction: Connection, aged: PrunableTable, before: datetime, *, limit: int
) -> int:
    """Delete up to `limit` rows that are older than `before`, the oldest first; return how many.

    Several processes may call it at once: each skips the rows that another has locked.
    """
    oldest = (
        select(aged.age, *aged.key)
        .where(aged.age < _comparable(aged, before))
        .order_by(aged.age)
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite ignores it: it has one writer
    )
    condition = choose(transaction, postgresql=_by_age_and_key, sqlite=_by_key)
    return transaction.execute(delete(aged.table).where(condition(aged, oldest))).rowcount


def _by_age_and_key(aged: PrunableTable, chosen: Select[Any]) -> ColumnElement[bool]:
    """Return the condition that a row is among the chosen ones, for PostgreSQL.

    A partition of the audit trail has no index on its key (ADR 0006). No chosen row is younger than
    the youngest of them, so the index on the time limits how many rows are compared.
    """
    oldest = chosen.cte("oldest")
    newest = select(func.max(oldest.c[aged.age.name])).scalar_subquery()
    keys = select(*(oldest.c[each.name] for each in aged.key))
    return and_(aged.age <= newest, tuple_(*aged.key).in_(keys))


def _by_key(aged: PrunableTable, chosen: Select[Any]) -> ColumnElement[bool]:
    """Return the same for SQLite, where each table has an index on its key."""
    return tuple_(*aged.key).in_(chosen.with_only_columns(*aged.key))


def count_older(connection: Connection, aged: PrunableTable, before: datetime) -> int:
    """Return how many rows are older than `before`."""
    query = select(func.count()).select_from(aged.table)
    return connection.execute(query.where(aged.age < _comparable(aged, before))).scalar_one()


def is_any_older(connection: Connection, aged: PrunableTable, before: datetime) -> bool:
    """Return whether any row is older than `before`, without a count of them."""
    query = select(aged.age).select_from(aged.table).limit(1)
    older = connection.execute(query.where(aged.age < _comparable(aged, before)))
    return older.first() is not None


def _begins_at_or_after(partition: Partition, when: datetime) -> bool:
    return partition.begins is not None and partition.begins >= when


def _trail_in(partition: Partition) -> PrunableTable:
    age = column(validation_history.c.validated_at.name, validation_history.c.validated_at.type)
    number = column(validation_history.c.id.name, validation_history.c.id.type)
    return PrunableTable(table(partition.name, age, number), age, (number,))


# Columns of type Date are compared with a date, the others with a time.
def _comparable(aged: PrunableTable, when: datetime) -> date:
    return when.date() if isinstance(aged.age.type, Date) else when
