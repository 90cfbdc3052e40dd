"""A SQLAlchemy dialect for psycopg that runs hot statements in one blocking call of libpq.

psycopg's cursors wait for the server in small steps and release the interpreter's lock (GIL)
several times for each statement. On a busy server an event loop takes the lock each time, and a
transaction of four statements waits for the lock thirty times. A blocking call of libpq releases
it once (measured in docs/performance.md).

A transaction with a commit mark sends BEGIN with its first statement, and a statement of
`run_at_commit` with COMMIT: each pair in one round trip (`storage.postgresql.pipeline`). Otherwise
BEGIN, COMMIT and the connection pool's ping always use the blocking call, and so do statements
that run with `execute_blocking`. Everything else goes through psycopg's cursors. Every call has a
deadline (`storage.outages.deadlines`). `storage.engine` creates the engine; stores call
`execute_blocking` or run a `NamedStatement`. Never call these in an event loop.
"""

import logging
import re
import select
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from birthmark_sma.runtime.library_methods import require_methods
from birthmark_sma.storage.outages import deadlines
from birthmark_sma.storage.outages.deadlines import UnreplicatedError, WatchedConnection
from birthmark_sma.storage.postgresql import pipeline
from birthmark_sma.storage.postgresql.pipeline import BINARY, Statement, name_of

_METHODS = ("exec_", "exec_params", "prepare", "exec_prepared", *pipeline.METHODS)
_OVERRIDDEN = ("do_begin", "do_commit", "do_ping", "do_execute", "is_disconnect")
# Names of execution options.
_AT_ONCE, _AT_BEGIN, _AT_COMMIT = "sma_at_once", "sma_at_begin", "sma_at_commit"
_COMMIT = Statement("COMMIT")
_UNUSABLE = ("08", "25006", "25P03", "57P01", "57P02", "57P03")
"""Prefixes of the SQLSTATEs that say that a connection is lost, or leads to a server that cannot
write any more: a standby, or one that shuts down. Then no connection stays in the pool."""
_SWITCHED = (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName)
"""A connection pooler gave this client another server connection."""
_PARAMETER = re.compile(r"(?<!:):(\w+)")

_log = logging.getLogger(__name__)


def execute_blocking(
    transaction: Connection, statement: str, parameters: Sequence[bytes]
) -> PGresult:
    """Run a statement with `$1`-style parameters in one blocking call of libpq; return its result.

    Parameters and results are in PostgreSQL's binary format (`storage.postgresql.arrays`). The
    statement stays prepared for the life of the connection. Raises the same errors as
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

    def run_at_begin(self, transaction: Connection, **parameters: bytes) -> None:
        """Run the statement with BEGIN, if BEGIN waits for the first statement; else at once.

        So its errors may come from the next statement, and its result is lost.
        """
        transaction.exec_driver_sql(
            self._statement,
            tuple([parameters[name] for name in self._names]),
            execution_options={_AT_ONCE: True, _AT_BEGIN: True},
        )

    def run_at_commit(self, transaction: Connection, **parameters: bytes) -> None:
        """Run the statement with COMMIT, or before the next statement if there is one.

        So its errors may come from either. If it fails, COMMIT is not run.
        """
        transaction.exec_driver_sql(
            self._statement,
            tuple([parameters[name] for name in self._names]),
            execution_options={_AT_ONCE: True, _AT_COMMIT: True},
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
    on_ending: Callable[[str, float], None] | None = None
    """Called with a statement that was sent with COMMIT, and the seconds that both took."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """Send BEGIN; with a commit mark, have both sent with the first statement.

        Psycopg alone would send BEGIN with the first statement, in a round trip of its own.
        """
        connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        connection.forget_deferred()
        connection.failed_before_commit = False
        timeouts = deadlines.server_timeouts(connection.seconds) if self.with_timeouts else None
        if connection.mark is None:
            query = deadlines.begin_with_timeouts(timeouts)
            connection.call(lambda pgconn: pgconn.exec_(query), deadlines.ROUND_TRIP_SECONDS)
            return
        begin = Statement(deadlines.begin_statement())
        connection.opening = begin, connection.mark.statement(timeouts)
        connection.send_deferred = partial(self._send_deferred, connection)

    def do_commit(self, dbapi_connection: Any) -> None:
        """Send COMMIT; return once the transaction is durable.

        Raises InFailedSqlTransaction if PostgreSQL rolled the transaction back instead.
        """
        connection = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        seconds = max(connection.seconds, connection.commit_seconds)
        # BEGIN is never sent with COMMIT: see docs/adr/0011-unknown-commits.md.
        ending = self._take_ending(connection)
        if ending is None:
            done = connection.call(lambda pgconn: pgconn.exec_(b"COMMIT"), seconds)
        else:
            done = self._commit_with(connection, ending, seconds)
        # PostgreSQL answers COMMIT with ROLLBACK, and no error, if a statement had failed.
        if done.command_status != b"COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("the transaction was rolled back")
        if not connection.is_replicated():
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
        connection: WatchedConnection = cursor.connection
        if connection.opening and context.execution_options.get(_AT_BEGIN, False):
            connection.opening = *connection.opening, Statement(statement, parameters)
            context.at_once_result = None
            return
        at_commit = context.execution_options.get(_AT_COMMIT, False)
        context.at_once_result = self._run(connection, Statement(statement, parameters), at_commit)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        """Return True if this error says that the connection is of no use any more.

        SQLAlchemy then closes it, and replaces all connections that were opened before.
        """
        unusable = (getattr(e, "sqlstate", None) or "").startswith(_UNUSABLE)
        return unusable or bool(super().is_disconnect(e, connection, cursor))  # type: ignore[no-untyped-call]

    def _run(
        self,
        connection: WatchedConnection,
        statement: Statement,
        at_commit: bool,  # noqa: FBT001
    ) -> PGresult | None:
        """Run a statement; return None if it is run with COMMIT.

        A statement that must be prepared first is run alone, so that timeouts are set before it.
        """
        if connection.ending is None and self._is_ready(connection, statement):
            if at_commit:
                connection.ending = statement
                connection.send_deferred = partial(self._send_deferred, connection)
                return None
            if opening := connection.opening:
                connection.forget_deferred()
                return self._run_together(connection, [*opening, statement])[-1]
        return self._run_alone(connection, statement)

    def _is_ready(self, connection: WatchedConnection, statement: Statement) -> bool:
        return not self.prepares or statement.text in connection.prepared

    def _send_deferred(self, connection: WatchedConnection) -> None:
        """Send what waits for the next statement or COMMIT, because something else comes before."""
        ending = self._take_ending(connection)
        if ending is not None:
            self._run_alone(connection, ending)

    def _take_ending(self, connection: WatchedConnection) -> Statement | None:
        """Send BEGIN if it was not sent; return the statement for COMMIT."""
        opening, ending = connection.opening, connection.ending
        connection.forget_deferred()
        if opening:
            self._run_together(connection, opening, deadlines.ROUND_TRIP_SECONDS)
        return ending

    def _commit_with(
        self, connection: WatchedConnection, ending: Statement, seconds: float
    ) -> PGresult:
        """Run a statement and COMMIT; return the result of COMMIT, or raise the first error."""
        began = perf_counter()
        try:
            results = self._pipe(connection, [ending, _COMMIT], seconds)
            # With a code of PostgreSQL's the statement failed, and COMMIT was not run. Without one,
            # the connection was lost, and nobody knows.
            state = results[0].error_field(pq.DiagnosticField.SQLSTATE)
            connection.failed_before_commit = state is not None
            return [connection.check(each) for each in results][-1]
        except _SWITCHED:
            self._stop_preparing()
            raise
        finally:
            if self.on_ending is not None:
                self.on_ending(ending.text, perf_counter() - began)

    def _run_together(
        self,
        connection: WatchedConnection,
        statements: Sequence[Statement],
        seconds: float | None = None,
    ) -> list[PGresult]:
        """Run statements in one round trip; return their results, or raise the first error."""
        try:
            results = self._pipe(connection, statements, seconds)
            return [connection.check(each) for each in results]
        except _SWITCHED:
            self._stop_preparing()
            raise

    def _pipe(
        self, connection: WatchedConnection, statements: Sequence[Statement], seconds: float | None
    ) -> list[PGresult]:
        if self.prepares:
            for each in statements:
                self._prepare(connection, each.text)
        return connection.call_unchecked(
            lambda pgconn: pipeline.run(pgconn, statements, prepared=self.prepares), seconds
        )

    def _run_alone(self, connection: WatchedConnection, statement: Statement) -> PGresult:
        """Run a statement in one blocking call, and prepare it first if needed.

        If a connection pooler has given this client another server connection, then the statement
        is missing there, or is prepared already. This transaction has failed then, and is tried
        again (`storage.outages.retries`), without preparing.
        """
        text, parameters = statement
        if not self.prepares:
            return connection.call(
                lambda pgconn: pgconn.exec_params(
                    text.encode(), parameters, None, statement.formats, BINARY
                )
            )
        try:
            self._prepare(connection, text)
            return connection.call(
                lambda pgconn: pgconn.exec_prepared(
                    name_of(text), parameters, statement.formats, BINARY
                )
            )
        except _SWITCHED:
            self._stop_preparing()
            raise

    def _prepare(self, connection: WatchedConnection, text: str) -> None:
        """Prepare a statement on this connection, unless it is."""
        if text not in connection.prepared:
            connection.call(lambda pgconn: pgconn.prepare(name_of(text), text.encode()))
            connection.prepared.add(text)

    def _stop_preparing(self) -> None:
        if self.prepares:
            self.prepares = False
            _log.warning(
                "a connection pooler shares the connections to PostgreSQL, and knows no"
                " prepared statements: from now on, none are prepared"
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


def _has_something_to_read(socket: int) -> bool:
    polled = select.poll()
    polled.register(socket, select.POLLIN)
    return bool(polled.poll(0))
