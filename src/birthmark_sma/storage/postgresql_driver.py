"""A SQLAlchemy dialect for psycopg that runs hot statements in one blocking call of libpq.

psycopg's cursors wait for the server in small steps and release the interpreter's lock (GIL)
several times for each statement. On a busy server an event loop takes the lock each time, and a
transaction of four statements waits for the lock thirty times. A blocking call of libpq releases
it once (measured in docs/performance.md).

BEGIN, COMMIT and the connection pool's ping always use the blocking call, and so do statements
that run with `execute_blocking`. Everything else goes through psycopg's cursors. Every call has a
deadline (`storage.outages.deadlines`). `storage.engine` creates the engine; stores call
`execute_blocking` or run a `NamedStatement`. Never call these in an event loop.
"""

import hashlib
import logging
import re
import select
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult
from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    create_engine,
)
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.types import TypeEngine

from birthmark_sma.runtime.library_methods import require_methods
from birthmark_sma.storage.outages import commit_marks, deadlines
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.outages.deadlines import UnreplicatedError, WatchedConnection
from birthmark_sma.storage.portable_sql import UtcDateTime

_METHODS = ("exec_", "exec_params", "prepare", "exec_prepared")
_OVERRIDDEN = ("do_begin", "do_commit", "do_ping", "do_execute", "is_disconnect")
# Name of the execution option of `execute_blocking`, and key of a connection's prepared statements.
_AT_ONCE = "sma_at_once"
_UNUSABLE = ("08", "25006", "25P03", "57P01", "57P02", "57P03")
"""Prefixes of the SQLSTATEs that say that a connection is lost, or leads to a server that cannot
write any more: a standby, or one that shuts down. Then no connection stays in the pool."""
_SWITCHED = (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName)
"""A connection pooler gave this client another server connection."""
_PARAMETER = re.compile(r"(?<!:):(\w+)")
_BINARY = 1  # libpq's code for the binary format

_log = logging.getLogger(__name__)


def execute_blocking(
    transaction: Connection, statement: str, parameters: Sequence[bytes]
) -> PGresult:
    """Run a statement with `$1`-style parameters in one blocking call of libpq; return its result.

    Parameters and results are in PostgreSQL's binary format: see the `array_of_...` functions
    below. The statement stays prepared for the life of the connection. Raises the same errors as
    `Connection.execute`.
    """
    done = transaction.exec_driver_sql(
        statement, tuple(parameters), execution_options={_AT_ONCE: True}
    )
    result: PGresult = done.context.at_once_result  # type: ignore[attr-defined]
    return result


class NamedStatement:
    """A statement with named parameters (`:name`) for `execute_blocking`.

    `parts` take the places in braces: names of columns and the like, never values.
    """

    def __init__(self, statement: str, **parts: str) -> None:
        statement = statement.format(**parts)
        # A cast (`::`) is no parameter. Each name becomes `$1` and so on, in order of appearance.
        self._names = list(dict.fromkeys(_PARAMETER.findall(statement)))
        self._statement = _PARAMETER.sub(
            lambda found: f"${self._names.index(found[1]) + 1}", statement
        )

    def run(self, transaction: Connection, **parameters: bytes) -> PGresult:
        """Run the statement in one blocking call. Raises as `execute_blocking`."""
        return execute_blocking(
            transaction, self._statement, [parameters[name] for name in self._names]
        )


class BlockingPsycopgDialect(PGDialect_psycopg):
    """SQLAlchemy's psycopg dialect with blocking calls of libpq (see the module's docstring).

    The methods override SQLAlchemy's; `dbapi_connection` is a WatchedConnection, or the pool's
    proxy of it.
    """

    # SQLAlchemy disables its statement cache for a dialect class that does not set this itself.
    supports_statement_cache = True

    with_timeouts = True
    """Whether BEGIN sets timeouts of the server's."""
    prepares = True
    """Whether statements are prepared. False once a connection pooler was found to be in between,
    that gives each transaction another server connection."""
    prepares_marks = True
    """The same for commit marks. Poolers that know prepared statements know none made by SQL."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """Send BEGIN, and the commit mark with it if there is one.

        Psycopg alone would send BEGIN with the first statement.
        """
        connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        begin = deadlines.begin_statement(
            connection.seconds,
            with_timeouts=self.with_timeouts,
            ends_when_idle=connection.mark is not None,
        )
        if connection.mark is None:
            connection.call(lambda pgconn: pgconn.exec_(begin), deadlines.ROUND_TRIP_SECONDS)
        else:
            self._begin_with_mark(connection, begin, connection.mark)

    def _begin_with_mark(
        self, connection: WatchedConnection, begin: bytes, mark: CommitMark
    ) -> None:
        """Send BEGIN and a commit mark in one message. The first one prepares the statement."""
        prepares = self.prepares_marks and connection.has_mark_statement is not False
        parts = [begin, mark.statement(prepared=prepares)]
        if prepares and connection.has_mark_statement is None:
            parts.insert(1, commit_marks.PREPARE)
            connection.has_mark_statement = False  # unless this succeeds
        statement = b"; ".join(parts)
        try:
            connection.call(lambda pgconn: pgconn.exec_(statement), deadlines.ROUND_TRIP_SECONDS)
        except _SWITCHED:
            self.prepares_marks = False
            raise
        if prepares:
            connection.has_mark_statement = True

    def do_commit(self, dbapi_connection: Any) -> None:
        """Send COMMIT; return once the transaction is durable.

        Raises InFailedSqlTransaction if PostgreSQL rolled the transaction back instead.
        """
        seconds = max(dbapi_connection.seconds, dbapi_connection.commit_seconds)
        # PostgreSQL answers COMMIT with ROLLBACK, and no error, if a statement had failed.
        done = dbapi_connection.call(lambda pgconn: pgconn.exec_(b"COMMIT"), seconds)
        if done.command_status != b"COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("the transaction was rolled back")
        if not dbapi_connection.is_replicated():
            raise UnreplicatedError("the commit was not replicated to a synchronous standby")

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Return True if an idle connection seems alive; raise a psycopg error if it is lost.

        A server that went away has closed its end, so the socket is readable. To poll the socket
        costs no round trip. Only if it is readable, an empty query finds out why.
        """
        if _has_something_to_read(dbapi_connection.pgconn.socket):
            dbapi_connection.call(lambda pgconn: pgconn.exec_(b""), deadlines.ROUND_TRIP_SECONDS)
        return True

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Run a statement; one of `execute_blocking` bypasses psycopg's cursor."""
        if context is None or not context.execution_options.get(_AT_ONCE, False):
            cursor.execute(statement, parameters)
            return
        prepared: dict[str, bytes] = context.root_connection.info.setdefault(_AT_ONCE, {})
        run = self._run_prepared if self.prepares else self._run_unprepared
        context.at_once_result = run(cursor.connection, prepared, statement, parameters)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Return True if this error says that the connection is of no use any more.

        SQLAlchemy then closes it, and replaces all connections that were opened before.
        """
        unusable = (getattr(e, "sqlstate", None) or "").startswith(_UNUSABLE)
        return unusable or bool(super().is_disconnect(e, connection, cursor))  # type: ignore[no-untyped-call]

    def _run_prepared(
        self,
        connection: WatchedConnection,
        prepared: dict[str, bytes],
        statement: str,
        parameters: Sequence[bytes],
    ) -> PGresult:
        """Run a statement and prepare it first if needed.

        `prepared` maps the text of the connection's prepared statements to their names. If a
        connection pooler has given this client another server connection, then the statement is
        missing there, or is prepared already. This transaction has failed then, and is tried again
        (`storage.outages.retries`), without preparing.
        """
        formats = [_BINARY] * len(parameters)
        try:
            name = prepared.get(statement)
            if name is None:
                name = _name(statement)
                connection.call(lambda pgconn: pgconn.prepare(name, statement.encode()))
                prepared[statement] = name
            return connection.call(
                lambda pgconn: pgconn.exec_prepared(name, parameters, formats, _BINARY)
            )
        except _SWITCHED:
            if self.prepares:
                self.prepares = False
                _log.warning(
                    "a connection pooler shares the connections to PostgreSQL, and knows no"
                    " prepared statements: from now on, none are prepared"
                )
            raise

    def _run_unprepared(
        self,
        connection: WatchedConnection,
        _: dict[str, bytes],
        statement: str,
        parameters: Sequence[bytes],
    ) -> PGresult:
        formats = [_BINARY] * len(parameters)
        return connection.call(
            lambda pgconn: pgconn.exec_params(
                statement.encode(), parameters, None, formats, _BINARY
            )
        )


registry.register("postgresql.at_once", __name__, BlockingPsycopgDialect.__name__)


def create(
    connect: Callable[[], WatchedConnection], *, with_timeouts: bool = True, **options: Any
) -> Engine:
    """Return an engine of this dialect, on connections that `connect` opens.

    With `with_timeouts` the server itself ends statements that take too long. `options` are those
    of SQLAlchemy's `create_engine`. Raises ConfigurationError if psycopg or SQLAlchemy lacks a
    method that this module or `storage.outages.deadlines` calls or overrides.
    """
    require_methods("psycopg", pq.PGconn, _METHODS)
    require_methods("psycopg", psycopg.Connection, deadlines.METHODS)
    require_methods("sqlalchemy", PGDialect_psycopg, _OVERRIDDEN)
    engine = create_engine("postgresql+at_once://", creator=connect, **options)
    dialect: Any = engine.dialect
    dialect.with_timeouts = with_timeouts
    return engine


def _name(statement: str) -> bytes:
    """Return the name of a prepared statement: a digest of its text.

    Clients behind a connection pooler share these names. A digest never names two statements.
    """
    return b"sma_" + hashlib.sha256(statement.encode()).hexdigest()[:32].encode()


def _has_something_to_read(socket: int) -> bool:
    polled = select.poll()
    polled.register(socket, select.POLLIN)
    return bool(polled.poll(0))


# --- PostgreSQL's binary format of an array with one dimension, all numbers big-endian: number of
# dimensions, flag for NULLs, OID of the element type, number of elements, index of the first
# element; then for each element its length in bytes (-1 for NULL) and its value.

TRUE = b"\x01"
"""The boolean true in binary format."""

_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
_INTEGER = struct.Struct("!ii")  # length and value, as in the following
_LONG_INTEGER = struct.Struct("!iq")
_MOMENT = struct.Struct("!iq")  # length and value
# OIDs from PostgreSQL's pg_type.dat; they are the same on every server.
_BYTEA_OID, _TEXT_OID, _INT4_OID, _INT8_OID, _TIMESTAMPTZ_OID = 17, 25, 23, 20, 1184
# A timestamptz is a number of microseconds since 2000-01-01 UTC.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def array_of_bytes(values: Sequence[bytes | None]) -> bytes:
    """Return the binary format of a `bytea[]`; None is NULL."""
    elements = (_NULL if each is None else _LENGTH.pack(len(each)) + each for each in values)
    return _array(_BYTEA_OID, len(values), elements)


def array_of_integers(values: Sequence[int | None]) -> bytes:
    """Return the binary format of an `int4[]`; None is NULL."""
    elements = (_NULL if each is None else _INTEGER.pack(4, each) for each in values)
    return _array(_INT4_OID, len(values), elements)


def array_of_text(values: Sequence[str | None]) -> bytes:
    """Return the binary format of a `text[]`; None is NULL."""
    known = {each: _text(each) for each in set(values)}  # most columns repeat a few values
    return _array(_TEXT_OID, len(values), (known[each] for each in values))


def array_of_times(values: Sequence[datetime | None]) -> bytes:
    """Return the binary format of a `timestamptz[]`; None is NULL. All times have a time zone."""
    known = {each: _time(each) for each in set(values)}
    return _array(_TIMESTAMPTZ_OID, len(values), (known[each] for each in values))


def _array_of_arrays(values: Sequence[Sequence[int]]) -> bytes:
    """Return a `text[]` of array literals: unnest() would flatten an array of arrays."""
    return array_of_text([f"{{{','.join(map(str, each))}}}" for each in values])


# By the type of a column: the type of the array that is sent, and its encoder. BigInteger is not
# here, although it is an Integer: its values may not fit `int4`. Other databases than PostgreSQL
# may take `integer` for eight bytes.
_ARRAYS: dict[type[TypeEngine[Any]], tuple[str, Callable[[Sequence[Any]], bytes]]] = {
    LargeBinary: ("bytea[]", array_of_bytes),
    Integer: ("int4[]", array_of_integers),
    SmallInteger: ("int4[]", array_of_integers),
    String: ("text[]", array_of_text),
    Text: ("text[]", array_of_text),
    UtcDateTime: ("timestamptz[]", array_of_times),
    ARRAY: ("text[]", _array_of_arrays),
}


class ColumnArrays:
    """Columns of a table that are sent as one array each, as parameters of their names.

    So a statement is the same for any number of rows. Raises TypeError for a type without an array.
    """

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        columns = [table.c[name] for name in names]
        missing = [each.name for each in columns if type(each.type) not in _ARRAYS]
        if missing:
            raise TypeError(f"add an array for the types of {missing} in {table.name}")
        kinds = [_ARRAYS[type(each.type)] for each in columns]
        self._encoders = [(name, kind[1]) for name, kind in zip(names, kinds, strict=True)]
        self.names = ", ".join(names)
        """The columns as in an INSERT."""
        self.arrays = ", ".join(
            f":{name}::{kind[0]}" for name, kind in zip(names, kinds, strict=True)
        )
        """The arguments of `unnest`."""
        self.values = ", ".join(
            f"CAST({each.name} AS int4[])" if isinstance(each.type, ARRAY) else each.name
            for each in columns
        )
        """The columns of the result of `unnest`, as the values of an INSERT."""

    def encode(self, rows: Iterable[Sequence[Any]]) -> dict[str, bytes]:
        """Return the parameters for one or more rows, whose values are in the order of `names`."""
        return {
            name: encode(values)
            for (name, encode), values in zip(self._encoders, zip(*rows, strict=True), strict=True)
        }


def parse_integer_array(array: bytes) -> tuple[int, ...]:
    """Return the values of an array of integers in binary format. It must not contain NULLs.

    The elements may have four bytes or eight, as the array says. Raises ValueError for other types.
    """
    if len(array) < _HEAD.size:  # an empty array has a shorter header
        return ()
    _, _, element_oid, _, _ = _HEAD.unpack_from(array)
    if element_oid == _INT4_OID:
        element = _INTEGER
    elif element_oid == _INT8_OID:
        element = _LONG_INTEGER
    else:
        raise ValueError(f"an array of integers has elements of the type with OID {element_oid}")
    return tuple([value for _, value in element.iter_unpack(array[_HEAD.size :])])


def _array(element_oid: int, count: int, elements: Iterable[bytes]) -> bytes:
    return _HEAD.pack(1, 1, element_oid, count, 1) + b"".join(elements)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _time(value: datetime | None) -> bytes:
    return _NULL if value is None else _MOMENT.pack(8, (value - _EPOCH) // _MICROSECOND)
