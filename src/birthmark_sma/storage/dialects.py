"""SQL expressions that differ between SQLite and PostgreSQL (docs/adr/0004).

Each function builds one expression or statement for the connection's dialect. Stores call them, so
no store has to ask for the dialect itself.
"""

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
    """Return the time of the database's clock, in UTC.

    PostgreSQL returns the start of the transaction. SQLite has no clock: this machine's is used.
    """
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.now())).scalar_one()
        return now.astimezone(UTC)
    return datetime.now(UTC)


def insert_or_skip(connection: Connection, table: Table) -> Insert:
    """Return an INSERT that skips rows that already exist (ON CONFLICT DO NOTHING)."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def is_any_of(
    connection: Connection, column: ColumnElement[Any], values: Sequence[Any]
) -> ColumnElement[bool]:
    """Return the condition that `column` is one of `values`.

    PostgreSQL gets the values as one array, so the statement text is the same for any number of
    values and can stay prepared. SQLite gets an IN list.
    """
    if connection.dialect.name == "postgresql":
        return column == any_(bindparam(None, values, type_=ARRAY(column.type)))
    return column.in_(values)


def truncate_to_hour(
    connection: Connection, time: ColumnElement[datetime]
) -> ColumnElement[datetime]:
    """Return the start of the UTC hour of `time`, whatever the session's time zone is."""
    if connection.dialect.name == "postgresql":
        # date_trunc looks the time zone up for each row, and that is most of its cost.
        an_hour: ColumnElement[Any] = literal_column("interval '1 hour'")
        epoch: ColumnElement[Any] = literal_column("timestamptz 'epoch'")
        return type_coerce(func.date_bin(an_hour, time, epoch), time.type)
    hour = func.substr(time, 1, len("2026-01-01 00:"), type_=String())
    return type_coerce(hour + literal_column("'00:00.000000+00:00'"), time.type)


def insert_or_add(connection: Connection, table: Table, number: Column[int]) -> Insert:
    """Return an INSERT that adds to column `number` of rows that already exist.

    The conflict is decided by the table's primary key.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    inserting = insert(table)
    return inserting.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={number.name: number + inserting.excluded[number.name]},
    )
