"""Delete what is old in small steps, so that whoever validates waits for one of them at most."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    TableClause,
    column,
    delete,
    func,
    literal_column,
    select,
    table,
)

from birthmark_sma.storage.partitions import Partition
from birthmark_sma.storage.schema import (
    busiest_devices,
    device_activity,
    device_flags,
    repeat_counters,
    validation_counters,
    validation_history,
)


class PrunableTable(NamedTuple):
    """A table, and the column that says how old its rows are."""

    table: TableClause
    age: ColumnElement[Any]


FIGURES = (
    PrunableTable(validation_counters, validation_counters.c.minute),
    PrunableTable(device_activity, device_activity.c.day),
    PrunableTable(busiest_devices, busiest_devices.c.day),
    PrunableTable(device_flags, device_flags.c.day),
    PrunableTable(repeat_counters, repeat_counters.c.minute),
)
"""What counts the audit trail, and goes with it."""


def split_by_age(
    partitions: Sequence[Partition], before: datetime
) -> tuple[list[Partition], list[PrunableTable]]:
    """Return the partitions that are older as a whole, and the tables that hold some older rows.

    Without partitions, as on SQLite, the audit trail is one table.
    """
    if not partitions:
        return [], [PrunableTable(validation_history, validation_history.c.validated_at)]
    whole = [each for each in partitions if each.ends is not None and each.ends <= before]
    partly = [
        each for each in partitions if each not in whole and not _begins_at_or_after(each, before)
    ]
    return whole, [_trail_in(partition) for partition in partly]


def delete_some(
    transaction: Connection, aged: PrunableTable, before: datetime, *, limit: int
) -> int:
    """Delete up to `limit` rows, the oldest first; return how many. Several programs may do so."""
    address: ColumnElement[Any] = literal_column(
        "ctid" if transaction.dialect.name == "postgresql" else "rowid"
    )
    oldest = (
        select(address)
        .select_from(aged.table)
        .where(aged.age < _comparable(aged, before))
        .order_by(aged.age)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return transaction.execute(delete(aged.table).where(address.in_(oldest))).rowcount


def count_older(connection: Connection, aged: PrunableTable, before: datetime) -> int:
    """Return how many rows are older."""
    query = select(func.count()).select_from(aged.table)
    return connection.execute(query.where(aged.age < _comparable(aged, before))).scalar_one()


def is_any_older(connection: Connection, aged: PrunableTable, before: datetime) -> bool:
    """Say whether any row is older, by its index."""
    query = select(aged.age).select_from(aged.table).limit(1)
    older = connection.execute(query.where(aged.age < _comparable(aged, before)))
    return older.first() is not None


def _begins_at_or_after(partition: Partition, when: datetime) -> bool:
    return partition.begins is not None and partition.begins >= when


def _trail_in(partition: Partition) -> PrunableTable:
    age = column(validation_history.c.validated_at.name, validation_history.c.validated_at.type)
    return PrunableTable(table(partition.name, age), age)


def _comparable(aged: PrunableTable, when: datetime) -> date:
    return when.date() if isinstance(aged.age.type, Date) else when
