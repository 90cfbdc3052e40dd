"""The places where SQLite and PostgreSQL want other SQL for the same thing."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    String,
    Table,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import Insert, ReturningInsert


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


def hour_of(connection: Connection, time: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """The beginning of the hour of a time, in UTC wherever the database thinks it is."""
    if connection.dialect.name == "postgresql":
        # Not date_trunc: it looks its time zone up for each row, which is most of what it takes.
        an_hour: ColumnElement[Any] = literal_column("interval '1 hour'")
        epoch: ColumnElement[Any] = literal_column("timestamptz 'epoch'")
        return type_coerce(func.date_bin(an_hour, time, epoch), time.type)
    hour = func.substr(time, 1, len("2026-01-01 00:"), type_=String())
    return type_coerce(hour + literal_column("'00:00.000000+00:00'"), time.type)


def add_counts(
    transaction: Connection,
    table: Table,
    name: Column[str],
    number: Column[int],
    counts: Mapping[str, int],
    **key: object,
) -> dict[str, int]:
    """Add to the numbers of one table in one statement; return what they have become, by name.

    Rows that are missing are made. `key` gives the other columns of the primary key. Rows are taken
    in the order of their names, so that two programs never wait for each other.
    """
    statement = _insert_or_add(transaction.dialect.name, table, name, number)
    parameters = {"counts": json.dumps(counts, ensure_ascii=False), **key}
    return {row[0]: row[1] for row in transaction.execute(statement, parameters)}


@cache
def _insert_or_add(
    dialect_name: str, table: Table, name: Column[str], number: Column[int]
) -> ReturningInsert[str, int]:
    """An INSERT of a JSON object of names and numbers that adds to rows which are there."""
    key = list(table.primary_key)
    counts = bindparam("counts", type_=String())
    if dialect_name == "postgresql":
        inserting: postgresql.Insert | sqlite.Insert = postgresql.insert(table)
        entries = func.json_each_text(cast(counts, JSON)).table_valued("key", "value")
    else:
        inserting = sqlite.insert(table)
        entries = func.json_each(counts).table_valued("key", "value")
    values = [
        entries.c.key if column is name else bindparam(column.name, type_=column.type)
        for column in key
    ]
    rows = (
        select(*values, cast(entries.c.value, number.type))
        .where(true())  # without it SQLite reads ON CONFLICT as part of a join
        .order_by(entries.c.key)
    )
    sums = {number.name: number + inserting.excluded[number.name]}
    return (
        inserting.from_select([*key, number], rows)
        .on_conflict_do_update(index_elements=key, set_=sums)
        .returning(name, number)
    )
