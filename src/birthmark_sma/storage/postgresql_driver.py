"""PostgreSQL through SQLAlchemy and psycopg, and past psycopg where each microsecond counts.

psycopg's cursors wait for the server in small steps, and let go of the interpreter's lock several
times a statement. On a busy server an event loop takes it each time, and a transaction of four
statements waits for its turn thirty times. libpq's own blocking call lets go of it once.

Beginning, committing and looking whether a connection lives always go that way, and so do the
statements that are run with `execute_blocking`.
"""

import hashlib
import select
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

_AT_ONCE = "sma_at_once"
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)
_BINARY = 1


def execute_blocking(
    transaction: Connection, statement: str, parameters: Sequence[bytes]
) -> PGresult:
    """Run a statement with `$1`-style parameters in one blocking call of libpq.

    Parameters and results are in PostgreSQL's binary form: see `array_of_...` below. It stays
    prepared as long as the connection lives. Raises what every statement raises.
    """
    done = transaction.exec_driver_sql(
        statement, tuple(parameters), execution_options={_AT_ONCE: True}
    )
    result: PGresult = done.context.at_once_result  # type: ignore[attr-defined]
    return result


class BlockingPsycopgDialect(PGDialect_psycopg):
    """SQLAlchemy's dialect for psycopg, with blocking calls of libpq where this module says so."""

    supports_statement_cache = True

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin at the start: psycopg alone would begin with the first statement."""
        _run(dbapi_connection.pgconn, lambda pgconn: pgconn.exec_(b"BEGIN"))

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit; returns once the transaction is durable.

        PostgreSQL answers ROLLBACK, and no error, where a statement failed and nobody minded.
        """
        done = _run(dbapi_connection.pgconn, lambda pgconn: pgconn.exec_(b"COMMIT"))
        if done.command_status != b"COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("the transaction was rolled back")

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Say whether a connection that nobody used seems alive.

        A server that went away has closed its end, and then there is something to read, which costs
        no round trip to find out.
        """
        if _has_something_to_read(dbapi_connection.pgconn.socket):
            _run(dbapi_connection.pgconn, lambda pgconn: pgconn.exec_(b""))
        return True

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Run a statement, those of `execute_blocking` past the cursor."""
        if context is None or not context.execution_options.get(_AT_ONCE, False):
            cursor.execute(statement, parameters)
            return
        prepared: dict[str, bytes] = context.root_connection.info.setdefault(_AT_ONCE, {})
        context.at_once_result = _run_prepared(
            cursor.connection.pgconn, prepared, statement, parameters
        )


registry.register("postgresql.at_once", __name__, BlockingPsycopgDialect.__name__)


def create(connect: Callable[[], psycopg.Connection[Any]], **options: Any) -> Engine:
    """Return an engine on connections that `connect` makes."""
    return create_engine("postgresql+at_once://", creator=connect, **options)


def _run_prepared(
    pgconn: PGconn, prepared: dict[str, bytes], statement: str, parameters: Sequence[bytes]
) -> PGresult:
    """Run a statement that stays prepared; `prepared` are the names of those that are."""
    name = prepared.get(statement)
    if name is None:
        name = _name(statement)
        try:
            _run(pgconn, lambda pgconn: pgconn.prepare(name, statement.encode()))
        except psycopg.errors.DuplicatePreparedStatement as error:
            # Behind a pooler somebody else has prepared it here. The transaction is lost, and
            # whoever tries again finds it prepared.
            prepared[statement] = name
            raise psycopg.OperationalError(str(error)) from error
        prepared[statement] = name
    formats = [_BINARY] * len(parameters)
    try:
        return _run(pgconn, lambda pgconn: pgconn.exec_prepared(name, parameters, formats, _BINARY))
    except psycopg.errors.InvalidSqlStatementName as error:
        # A pooler between here and the server has changed servers. Whoever tries again prepares
        # again.
        prepared.clear()
        raise psycopg.OperationalError(str(error)) from error


def _name(statement: str) -> bytes:
    """Name a statement by what it says: behind a pooler, others see the same names.

    So a name never stands for another statement than its own.
    """
    return b"sma_" + hashlib.sha256(statement.encode()).hexdigest()[:32].encode()


def _has_something_to_read(socket: int) -> bool:
    polled = select.poll()
    polled.register(socket, select.POLLIN)
    return bool(polled.poll(0))


def _run(pgconn: PGconn, call: Callable[[PGconn], PGresult]) -> PGresult:
    if pgconn.status != pq.ConnStatus.OK:  # libpq would return nothing at all
        raise psycopg.OperationalError("the connection is lost")
    result = call(pgconn)
    if result.status in _DONE:
        return result
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    message = result.error_message.decode(errors="replace")
    if state is None:
        raise psycopg.OperationalError(message)
    try:
        kind = psycopg.errors.lookup(state.decode())
    except KeyError:
        kind = psycopg.DatabaseError
    raise kind(message)


# --- PostgreSQL's binary form of arrays with one dimension: how many dimensions, whether there are
# NULLs, the type of the elements, how many there are, the number of the first; then each element
# with its length before it, -1 for NULL. All big-endian.

TRUE = b"\x01"
"""A boolean that is true."""

_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
_INTEGER = struct.Struct("!ii")
_BYTEA_OID, _TEXT_OID, _INT4_OID, _TIMESTAMPTZ_OID = 17, 25, 23, 1184
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def array_of_bytes(values: Sequence[bytes]) -> bytes:
    """`bytea[]`."""
    return _array(_BYTEA_OID, len(values), (_LENGTH.pack(len(each)) + each for each in values))


def array_of_integers(values: Sequence[int]) -> bytes:
    """`integer[]`."""
    return _array(_INT4_OID, len(values), (_INTEGER.pack(4, each) for each in values))


def array_of_text(values: Sequence[str | None]) -> bytes:
    """`text[]`; None is NULL."""
    known = {each: _text(each) for each in set(values)}  # most columns repeat a few values
    return _array(_TEXT_OID, len(values), (known[each] for each in values))


def array_of_times(values: Sequence[datetime]) -> bytes:
    """`timestamptz[]`, of times with a zone."""
    known = {each: struct.pack("!iq", 8, (each - _EPOCH) // _MICROSECOND) for each in set(values)}
    return _array(_TIMESTAMPTZ_OID, len(values), (known[each] for each in values))


def parse_integer_array(array: bytes) -> tuple[int, ...]:
    """Read an `integer[]` without NULLs."""
    return tuple(value for _, value in _INTEGER.iter_unpack(array[_HEAD.size :]))


def _array(element_oid: int, count: int, elements: Iterable[bytes]) -> bytes:
    return _HEAD.pack(1, 1, element_oid, count, 1) + b"".join(elements)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded
