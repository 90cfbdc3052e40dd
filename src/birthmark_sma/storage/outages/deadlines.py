"""Deadlines of calls to PostgreSQL: a watchdog closes the socket of a call without an answer.

libpq waits for an answer for ever. A host that was cut off is noticed by TCP (`storage.engine` sets
its timeouts), but a frozen host still acknowledges every packet. So each call of a
`WatchedConnection` has a deadline, and one thread of the process shuts down the sockets of calls
that are overdue: their threads then get an error at once. If the server still works, its own
timeouts end a statement earlier, and the connection stays in use (`begin_statement`).

`storage.postgresql_driver` makes its calls with `WatchedConnection.call`. psycopg's own calls all
go through `WatchedConnection.wait`. SQLite has no network: its calls end by its own busy timeout.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import RV, PQGen
from psycopg.errors import Diagnostic
from psycopg.pq.abc import PGconn, PGresult

from birthmark_sma.storage.outages.commit_marks import CommitMark, Timeouts
from birthmark_sma.storage.postgresql.pipeline import Statement

QUICK_SECONDS = 6.0
"""For each statement of a request that waits: the two writers, health checks, keys, sessions."""
USUAL_SECONDS = 30.0
"""For each statement of everything else."""
LONG_SECONDS = 3600.0
"""For statements that read or change whole tables: migrations, backups, restores, pruning."""
ROUND_TRIP_SECONDS = 4.0
"""For BEGIN, ROLLBACK and pings, which never wait for a lock or a disk. So every transaction,
however long its statements may take, notices within this time that the server is frozen. A BEGIN
that is sent with a statement has the time of the statement."""
COMMIT_SECONDS = 8.0
"""At least this for COMMIT: an abandoned COMMIT may have happened."""
LONGEST_COMMIT_SECONDS = 300.0
"""The time of COMMIT doubles up to this while one after the other gets no answer. A primary that
waits for a lost standby keeps a process for each COMMIT, and has only so many."""

TCP_TIMEOUTS = {
    "connect_timeout": 3,  # for each host of the URL, and each of its addresses
    "tcp_user_timeout": 10_000,  # milliseconds, for a packet to be acknowledged
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""Parameters of libpq for what a URL does not set. A host that vanished acknowledges no packet: its
connections are lost after about 10 seconds, with a call under way and without one."""

ISOLATION = "READ COMMITTED"
"""The isolation level of every transaction, whatever the default of the database is. Only tests set
another one: SERIALIZABLE makes PostgreSQL fail transactions that must then be tried again."""

_LOOK_SECONDS = 0.25  # a deadline may be this much late
_NEVER = float("inf")
_WAITS_FOR_STANDBY = "SyncRepWaitForLSN"
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)

_log = logging.getLogger(__name__)


class OverdueError(psycopg.OperationalError):
    """The server did not answer a call in time, so its connection was closed."""


class UnreplicatedError(psycopg.OperationalError):
    """COMMIT succeeded, but its wait for a synchronous standby was cancelled.

    The transaction is visible, and may be lost in a fail-over.
    """


def server_timeouts(seconds: float) -> Timeouts | None:
    """Return the timeouts with which the server ends a statement before `seconds` are over.

    COMMIT has no timeout of the server's: one that ends while it waits for a synchronous standby
    would look like a success.
    """
    if seconds >= LONG_SECONDS:
        return None
    return Timeouts(statement=round(seconds * 900), lock=round(seconds * 800))


def begin_statement() -> str:
    """Return the statement that begins a transaction."""
    return f"BEGIN ISOLATION LEVEL {ISOLATION}"


def begin_with_timeouts(timeouts: Timeouts | None) -> bytes:
    """Return the same with timeouts as one simple query, which costs one round trip."""
    begin = begin_statement()
    if timeouts is not None:
        begin += f"; SET LOCAL statement_timeout = {timeouts.statement}"
        begin += f"; SET LOCAL lock_timeout = {timeouts.lock}"
    return begin.encode()


class WatchedConnection(psycopg.Connection[Any]):
    """A connection of psycopg whose calls have a deadline. One thread uses it at a time.

    A call that is overdue raises OverdueError. Then the connection is closed, and if the call was a
    COMMIT, the transaction may have happened.
    """

    seconds: float
    """The time of each call from now on."""
    commit_seconds: float
    """The same for COMMIT, if it is longer."""
    mark: CommitMark | None = None
    """Sent with the next BEGIN."""
    opening: Sequence[Statement] = ()
    """BEGIN, the mark and what else runs at BEGIN, until they are sent with the first statement."""
    ending: Statement | None = None
    """A statement to send with COMMIT."""
    send_deferred: Callable[[], None] | None = None
    """Sends `opening` and `ending`. Called before any other call."""
    failed_before_commit: bool = False
    """Whether COMMIT was sent, but not run because `ending` failed."""

    def __init__(self, pgconn: PGconn, *args: Any, **options: Any) -> None:
        super().__init__(pgconn, *args, **options)
        # Until the first transaction sets them.
        self.seconds, self.commit_seconds = QUICK_SECONDS, COMMIT_SECONDS
        # Written by the thread that uses the connection, read by the watchdog. A wrong guess of the
        # watchdog is harmless: a shut connection is found out before or at its next use.
        self._due = _NEVER
        self._is_cut = False
        # A duplicate: libpq closes its own descriptor when it notices a lost connection, and the
        # number may then belong to the socket of an HTTP request.
        self._socket = socket.socket(fileno=os.dup(pgconn.socket))
        _watchdog.add(self)
        self._is_replicated = True
        self.prepared: set[str] = set()
        """The texts of the statements that are prepared."""
        self.add_notice_handler(self._look_at_notice)

    def call(self, call: Callable[[PGconn], PGresult], seconds: float | None = None) -> PGresult:
        """Make one blocking call of libpq and return its result, or raise its error.

        `seconds` replaces the time of the connection. Raises psycopg's exception for the SQLSTATE
        of a failed statement.
        """
        return self.check(self.call_unchecked(call, seconds))

    def call_unchecked(self, call: Callable[[PGconn], RV], seconds: float | None = None) -> RV:
        """Make one blocking call of libpq; return what it returns, also if a statement failed."""
        self._send_deferred()
        pgconn = self.pgconn
        if pgconn.status != pq.ConnStatus.OK:  # libpq would return no result and no error
            raise psycopg.OperationalError("the connection is lost")
        self._due = monotonic() + (self.seconds if seconds is None else seconds)
        try:
            return call(pgconn)
        except psycopg.OperationalError as error:
            if self._is_cut:
                raise OverdueError(str(error)) from error
            raise
        finally:
            self._due = _NEVER

    def check(self, result: PGresult) -> PGresult:
        """Return a result, or raise the error that it is."""
        if result.status in _DONE:
            return result
        # Map the SQLSTATE to psycopg's exception class, as psycopg's cursors do.
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        message = result.error_message.decode(errors="replace")
        if state is None:
            raise (OverdueError if self._is_cut else psycopg.OperationalError)(message)
        try:
            kind = psycopg.errors.lookup(state.decode())
        except KeyError:
            kind = psycopg.DatabaseError
        raise kind(message, info=result)

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """Overrides psycopg's method, through which all its own calls go."""
        self._send_deferred()
        self._due = monotonic() + self.seconds
        try:
            return super().wait(gen, *args, **options)
        except psycopg.OperationalError as error:
            if self._is_cut and error.sqlstate is None:
                raise OverdueError(str(error)) from error
            raise
        finally:
            self._due = _NEVER

    def _send_deferred(self) -> None:
        """Send what waits for the next statement or for COMMIT."""
        if self.send_deferred is not None:
            send, self.send_deferred = self.send_deferred, None
            send()

    def forget_deferred(self) -> None:
        """Send nothing of what waits."""
        self.opening, self.ending, self.send_deferred = (), None, None

    def rollback(self) -> None:
        """Overrides psycopg's method, with the time of a round trip."""
        self.forget_deferred()
        seconds, self.seconds = self.seconds, min(self.seconds, ROUND_TRIP_SECONDS)
        try:
            super().rollback()
        finally:
            self.seconds = seconds

    def hurry(self, seconds: float) -> None:
        """Give the current call and all further ones of this transaction at most `seconds`.

        Any thread may call it, while the connection is in use.
        """
        self.seconds = min(self.seconds, seconds)
        due = monotonic() + seconds
        if due < self._due < _NEVER:
            self._due = due

    def is_replicated(self) -> bool:
        """Return False, once, if a COMMIT succeeded though its wait for a standby was cancelled."""
        was_replicated, self._is_replicated = self._is_replicated, True
        return was_replicated

    def _look_at_notice(self, notice: Diagnostic) -> None:
        # The text of the warning depends on the server's language, and its SQLSTATE is that of any
        # warning. So it is known by PostgreSQL's function that gives it.
        if notice.source_function == _WAITS_FOR_STANDBY:
            self._is_replicated = False

    def cut_if_overdue(self, now: float) -> None:
        """Shut the socket down if the current call is overdue. The watchdog calls this."""
        if self._due > now:
            return
        self._due = _NEVER
        self._is_cut = True
        _log.warning("PostgreSQL did not answer a call in time: its connection is closed")
        with contextlib.suppress(OSError):  # the connection is lost already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Overrides psycopg's method. More calls do nothing."""
        _watchdog.remove(self)
        self._socket.close()
        super().close()


METHODS = ("wait", "rollback", "close", "add_notice_handler")
"""The methods of psycopg's connection that WatchedConnection overrides or calls."""


class _Watchdog:
    """Looks at the deadlines of all open connections. Its thread runs while there is one.

    A process without an open connection has no such thread, so it may fork.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, without a thread: in a child of a fork, connections belong to the parent."""
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._watched: set[WatchedConnection] = set()
        self._thread: threading.Thread | None = None

    def add(self, connection: WatchedConnection) -> None:
        with self._changed:
            self._watched.add(connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()

    def remove(self, connection: WatchedConnection) -> None:
        with self._changed:
            self._watched.discard(connection)
            thread = self._thread
            if self._watched or thread is None:
                return
            self._thread = None
            self._changed.notify_all()
        thread.join(_LOOK_SECONDS)

    def _run(self) -> None:
        own = threading.current_thread()
        while True:
            with self._changed:
                if self._thread is not own:
                    return
                self._changed.wait(_LOOK_SECONDS)
                watched = list(self._watched)
            now = monotonic()
            for connection in watched:
                connection.cut_if_overdue(now)


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.forget)
