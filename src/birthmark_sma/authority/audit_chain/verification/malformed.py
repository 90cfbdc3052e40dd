"""Find rows of the trail with values that no program of ours writes, and that cannot be read.

SQLite stores anything in any column, and PostgreSQL has times that Python has not. Such a row must
become a finding of `sma audit verify` and not an error. `database_reader` calls it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    String,
    Table,
    and_,
    cast,
    func,
    not_,
    or_,
    select,
    true,
)

from birthmark_sma.storage.portable_sql import UtcDateTime, choose

# A day away from the ends of Python's calendar, for the sake of sums with days.
_FIRST_TIME = datetime(1, 1, 2, tzinfo=UTC)
_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)
_TYPES = ((LargeBinary, "blob"), (Boolean, "integer"), (Integer, "integer"), (String, "text"))
_FRACTION = ".[0-9][0-9][0-9][0-9][0-9][0-9]+00:00"
_SECOND_ENDS = 19


def is_well_formed(connection: Connection, table: Table) -> ColumnElement[bool]:
    """Return the condition that a row's values can be read."""
    is_fit = choose(connection, postgresql=_fits_in_postgresql, sqlite=_fits_in_sqlite)
    return and_(true(), *(is_fit(column) for column in table.columns))


def find_malformed(
    connection: Connection, table: Table, names: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Yield the values of these columns, as text, of each row whose values cannot be read."""
    query = select(*(cast(table.c[name], String) for name in names)).where(
        not_(func.coalesce(is_well_formed(connection, table), False))
    )
    for row in connection.execute(query):
        yield tuple(_as_text(value) for value in row)


def _fits_in_postgresql(column: Column[object]) -> ColumnElement[bool]:
    if not isinstance(column.type, UtcDateTime):
        # An owner can drop the constraint.
        return true() if column.nullable else column.is_not(None)
    return _allow_null(column, and_(column >= _FIRST_TIME, column < _END_OF_TIME))


def _fits_in_sqlite(column: Column[object]) -> ColumnElement[bool]:
    kind = func.typeof(column)
    if isinstance(column.type, UtcDateTime):
        text = cast(column, String)
        second = func.substr(text, 1, _SECOND_ENDS)
        fits = and_(
            kind == "text",
            # A modifier makes SQLite compute with the date, so that it becomes one that exists.
            func.strftime("%Y-%m-%d %H:%M:%S", second, "+0 days") == second,
            func.substr(text, _SECOND_ENDS + 1).op("GLOB")(_FRACTION),
            column >= _FIRST_TIME,
            column < _END_OF_TIME,
        )
    else:
        fits = kind == next(name for type_, name in _TYPES if isinstance(column.type, type_))
        if isinstance(column.type, Boolean):
            fits = and_(fits, cast(column, Integer).between(0, 1))
    return _allow_null(column, fits)


def _allow_null(column: Column[object], fits: ColumnElement[bool]) -> ColumnElement[bool]:
    return or_(column.is_(None), fits) if column.nullable else fits


def _as_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
