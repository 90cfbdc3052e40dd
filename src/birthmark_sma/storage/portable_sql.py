"""SQL and column types that differ between SQLite and PostgreSQL (docs/adr/0004).

The schema and stores use this module, so that none of them asks for the dialect. Each function but
`choose` builds one expression or statement for the connection's database. A feature that needs more
has a Protocol in `store.py`, an implementation in `store_postgresql.py` and in `store_sqlite.py`,
and gets its own with `choose`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Integer,
    SelectBase,
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
from sqlalchemy.types import TypeDecorator, TypeEngine

_Choice = TypeVar("_Choice")

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements INTEGER keys only
TableIds = ARRAY(Integer).with_variant(JSON, "sqlite")
"""Types of columns."""


def as_sqlite_text(value: datetime) -> str:
    """Return a time with a zone as the text that SQLite stores, in UTC with microseconds."""
    return value.astimezone(UTC).isoformat(" ", "microseconds")


class UtcDateTime(TypeDecorator[datetime]):
    """A column type for times with a zone; values are returned in UTC.

    SQLite has no such type, so it stores ISO 8601 text with `+00:00`. This text sorts by time, and
    SQLite's date functions accept it. Binding a time without a zone raises ValueError.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(32))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not reach the database")
        return as_sqlite_text(value) if dialect.name == "sqlite" else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(value)
        zoned: datetime = value
        return zoned.astimezone(UTC)


class TimeStep(Enum):
    """The lengths of time to which `truncate_time` rounds down."""

    MINUTE = timedelta(minutes=1)
    TEN_MINUTES = timedelta(minutes=10)
    HOUR = timedelta(hours=1)


_POSTGRESQL_STEPS = {
    TimeStep.TEN_MINUTES: "interval '10 minutes'",
    TimeStep.HOUR: "interval '1 hour'",
}
_SQLITE_STEPS = {
    TimeStep.TEN_MINUTES: ("2026-01-01 00:0", "'0:00.000000+00:00'"),
    TimeStep.HOUR: ("2026-01-01 00:", "'00:00.000000+00:00'"),
}
"""The part of SQLite's text of a time that is kept, and what replaces the rest of it."""


def choose(bind: Connection | Engine, *, postgresql: _Choice, sqlite: _Choice) -> _Choice:
    """Return the implementation for the kind of database, which was decided at its opening."""
    return postgresql if bind.dialect.name == "postgresql" else sqlite


def database_time(connection: Connection) -> datetime:
    """Return the time of the database's clock, in UTC.

    PostgreSQL returns the start of the transaction. SQLite has no clock: this machine's is used.
    """
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.now())).scalar_one()
        return now.astimezone(UTC)
    return datetime.now(UTC)


def check_deferred_constraints(transaction: Connection) -> None:
    """Check the constraints, and run the constraint triggers, that PostgreSQL left for COMMIT.

    SQLite has none.
    """
    if transaction.dialect.name == "postgresql":
        transaction.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")


def insert_or_skip(connection: Connection, table: Table) -> Insert:
    """Return an INSERT that skips rows that already exist (ON CONFLICT DO NOTHING)."""
    return _insert(connection, table).on_conflict_do_nothing()


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


def truncate_time(
    connection: Connection, time: ColumnElement[datetime], step: TimeStep
) -> ColumnElement[datetime]:
    """Return the start of the step (UTC) of a full minute, whatever the session's time zone is."""
    if step is TimeStep.MINUTE:
        return time
    if connection.dialect.name == "postgresql":
        # date_trunc looks the time zone up for each row, and that is most of its cost.
        interval: ColumnElement[Any] = literal_column(_POSTGRESQL_STEPS[step])
        epoch: ColumnElement[Any] = literal_column("timestamptz 'epoch'")
        return type_coerce(func.date_bin(interval, time, epoch), time.type)
    kept, rest = _SQLITE_STEPS[step]
    begins = func.substr(time, 1, len(kept), type_=String())
    return type_coerce(begins + literal_column(rest), time.type)


def insert_or_update(
    connection: Connection,
    table: Table,
    *,
    add: Iterable[Column[Any]] = (),
    replace: Iterable[Column[Any]] = (),
) -> Insert:
    """Return an INSERT that changes rows that already exist, by the table's primary key.

    The given values are added to the columns `add`, and replace those of the columns `replace`.
    """
    inserting = _insert(connection, table)
    given = inserting.excluded
    return inserting.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={each.name: each + given[each.name] for each in add}
        | {each.name: given[each.name] for each in replace},
    )


def insert_from_select(
    connection: Connection, table: Table, columns: Sequence[str], rows: SelectBase
) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT of the rows of a query, which has a value for each of these columns.

    The query needs a WHERE: without one, SQLite takes ON CONFLICT for a part of a join. The caller
    adds what happens to rows that exist already.
    """
    return _insert(connection, table).from_select(columns, rows)


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
