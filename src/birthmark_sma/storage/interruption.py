"""End the statements of work that nobody waits for any more.

A thread cannot be ended from outside, and a statement that nobody wants can keep a core and a
thread busy for minutes. Both databases end a statement when another thread asks them to: libpq by
a message to the server, SQLite by a flag.
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
_TRIES = 50
_CANCEL_SECONDS = 2.0


class Interruption:
    """A piece of work that any thread can interrupt. It uses one connection at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._connection: Any = None  # the driver's; guarded by _changed
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Let the statement under way fail, and every further one; return at once."""
        with self._changed:
            self.is_interrupted = True
            if self._connection is None:
                return
        threading.Thread(target=self._insist, name="interruption", daemon=True).start()

    @contextlib.contextmanager
    def holding(self, connection: Connection) -> Iterator[None]:
        """Let the statements on a connection be interrupted during the block."""
        self.check()
        with self._changed:
            before, self._connection = (
                self._connection,
                connection.connection.driver_connection,
            )
        try:
            yield
        finally:
            with self._changed:  # a message to the server never meets whoever has it next
                self._connection = before
                self._changed.notify_all()

    def check(self) -> None:
        """Raise AbandonedWorkError where the work was interrupted."""
        if self.is_interrupted:
            raise AbandonedWorkError

    def _insist(self) -> None:
        """Interrupt again and again: the first time could fall between two statements."""
        for _ in range(_TRIES):
            with self._changed:
                if self._connection is None:
                    return
                _interrupt(self._connection)
                self._changed.wait(_AGAIN_SECONDS)


CURRENT: ContextVar[Interruption | None] = ContextVar("interruption", default=None)
"""What interrupts the work of this context, if anything does."""


@contextlib.contextmanager
def interruptible(connection: Connection) -> Iterator[None]:
    """Let the work of this context be interrupted while it uses a connection.

    Raises AbandonedWorkError where that was done before.
    """
    interruption = CURRENT.get()
    if interruption is None:
        yield
    else:
        with interruption.holding(connection):
            yield


def check(*_: object) -> None:
    """Raise AbandonedWorkError before a statement that nobody waits for."""
    interruption = CURRENT.get()
    if interruption is not None:
        interruption.check()


def _interrupt(connection: Any) -> None:
    with contextlib.suppress(psycopg.Error, sqlite3.Error, OSError):
        if isinstance(connection, sqlite3.Connection):
            connection.interrupt()
        elif connection is not None:
            connection.cancel_safe(timeout=_CANCEL_SECONDS)
