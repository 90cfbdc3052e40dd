"""The places where SQLite and PostgreSQL want other SQL for the same thing."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    String,
    Table,
    any_,
    bindparam,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import Insert


def database_time(connection: Connection) -> datetime:
    """The time by the database's own clock. SQLite has none but that of this machine."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.now())).scalar_one()
        return now.astimezone(UTC)
    return datetime.now(UTC)


def insert_or_skip(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves every row standing that it would collide with."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def is_any_of(
    connection: Connection, column: ColumnElement[Any], values: Sequence[Any]
) -> ColumnElement[bool]:
    """`column` is one of `values`, as one statement text whatever their number where possible.

    PostgreSQL takes the values as one array, and so can keep the statement prepared.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(bindparam(None, values, type_=ARRAY(column.type)))
    return column.in_(values)


def truncate_to_hour(
    connection: Connection, time: ColumnElement[datetime]
) -> ColumnElement[datetime]:
    """The beginning of the hour of a time, in UTC wherever the database thinks it is."""
    if connection.dialect.name == "postgresql":
        # Not date_trunc: it looks its time zone up for each row, which is most of what it takes.
        an_hour: ColumnElement[Any] = literal_column("interval '1 hour'")
        epoch: ColumnElement[Any] = literal_column("timestamptz 'epoch'")
        return type_coerce(func.date_bin(an_hour, time, epoch), time.type)
    hour = func.substr(time, 1, len("2026-01-01 00:"), type_=String())
    return type_coerce(hour + literal_column("'00:00.000000+00:00'"), time.type)


def insert_or_add(connection: Connection, table: Table, number: Column[int]) -> Insert:
    """An INSERT that adds to `number` of every row that it would collide with."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    inserting = insert(table)
    return inserting.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={number.name: number + inserting.excluded[number.name]},
    )
