"""Cancel database statements whose caller has left or has reached its timeout.

Python cannot stop a thread from outside, and an unwanted statement can keep a core and a thread
busy for minutes. Both databases can cancel a statement from another thread: libpq sends a message
to the server, SQLite sets a flag. If the server is frozen, the connection is closed a little later
(`storage.outages.deadlines`). `web.middleware.timeouts` interrupts; `storage.engine` makes each
connection interruptible. A commit that has happened is never undone.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import psycopg
from sqlalchemy import Connection

from birthmark_sma.errors import AbandonedWorkError

_AGAIN_SECONDS = 0.2
_TRIES = 50  # with the pause above: at least 10 seconds
_CANCEL_SECONDS = 2.0  # for libpq's own connection to the server, over which it cancels
_CUT_SECONDS = 2.0  # for the cancelled call to end


class Interruption:
    """The work of one request, which any thread can interrupt. It uses one connection at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._connection: Any = None  # the driver's; guarded by _changed
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Cancel the current statement and make all further ones fail. Returns at once.

        A background thread sends the cancellation, because the caller may be an event loop.
        """
        with self._changed:
            self.is_interrupted = True
            if self._connection is None:
                return
        threading.Thread(target=self._insist, name="interruption", daemon=True).start()

    @contextlib.contextmanager
    def holding(self, connection: Connection) -> Iterator[None]:
        """Make the statements on a connection interruptible during the block.

        Blocks can be nested: the outer connection is restored at the end. Raises AbandonedWorkError
        if the work was interrupted before.
        """
        self.check()
        with self._changed:
            before, self._connection = (
                self._connection,
                connection.connection.driver_connection,
            )
        try:
            yield
        finally:
            # `_insist` cancels while it holds this lock. So no cancellation can reach the next
            # user of the connection after it went back to the connection pool.
            with self._changed:
                self._connection = before
                self._changed.notify_all()

    def check(self) -> None:
        """Raise AbandonedWorkError if the work was interrupted."""
        if self.is_interrupted:
            raise AbandonedWorkError

    def _insist(self) -> None:
        """Cancel repeatedly until the connection is released.

        A single cancellation has no effect if it arrives between two statements.
        """
        for _ in range(_TRIES):
            with self._changed:
                if self._connection is None:
                    return
                _interrupt(self._connection)
                self._changed.wait(_AGAIN_SECONDS)


CURRENT: ContextVar[Interruption | None] = ContextVar("interruption", default=None)
"""The Interruption of the current context (request), or None if its work cannot be interrupted."""


def _interrupt(connection: Any) -> None:
    with contextlib.suppress(psycopg.Error, sqlite3.Error, OSError):
        if isinstance(connection, sqlite3.Connection):
            connection.interrupt()
        elif connection is not None:
            connection.hurry(_CUT_SECONDS)
            connection.cancel_safe(timeout=_CANCEL_SECONDS)
