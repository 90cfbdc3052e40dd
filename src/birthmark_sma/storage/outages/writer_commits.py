"""The transactions of one writer, each with a known end.

If COMMIT gets no answer, the transaction may have been committed or not. Callers must neither get
an error for work that was done, nor must the work be done twice. So `WriterCommits` reconnects and
looks up the transaction's mark (`storage.outages.commit_marks`). `storage.group_commit` writes its
batches through this class. docs/adr/0011-unknown-commits.md explains why the result is certain.
"""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy import Connection

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.commit_marks import CommitMark, read_sequence
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS

_SECONDS = 8.0
"""No lookup begins later than this after the start of the transaction, because callers wait for up
to SMA_ANSWER_TIMEOUT (10 seconds unless configured) ..."""
_LEAST_SECONDS = 2.0
"""... but lookups begin for at least this long, also after a COMMIT that took all of that time."""
_SHORTEST_STATEMENT_SECONDS = 1.0
_PAUSE_SECONDS = 0.1

_log = logging.getLogger(__name__)


class WriterCommits:
    """Opens the transactions of one writer thread, one after the other. Not for several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._has_marks = database.dialect_name == "postgresql"
        self._writer = secrets.token_hex(16)
        self._committed = 0  # the number of transactions under this name

    @property
    def next_mark(self) -> CommitMark:
        """Return the mark of the current transaction, or of the next one."""
        return CommitMark(self._writer, self._committed + 1)

    @contextmanager
    def write(self, seconds: float) -> Iterator[Connection]:
        """Open a transaction for writing, as `Database.write`, and find out how it ended.

        The block ends without an error if the transaction is durable, even if its COMMIT got no
        answer. Raises DatabaseUnavailableError; `may_have_committed` is then True only if the
        database could not be asked in time.
        """
        began = monotonic()
        mark = self.next_mark
        try:
            with self._database.write(seconds, mark=mark) as transaction:
                yield transaction
        except DatabaseUnavailableError as error:
            if error.try_again:
                raise
            if not self._was_committed(mark, error, began):
                # The server may not have noticed yet that the old connection is lost. A new row is
                # never locked by the old transaction.
                self._writer, self._committed = secrets.token_hex(16), 0
                raise
        self._committed = mark.sequence

    def _was_committed(
        self, mark: CommitMark, error: DatabaseUnavailableError, began: float
    ) -> bool:
        """Return whether a transaction that failed with `error` is durable.

        If the answer is no for certain, set `error.may_have_committed` to False.
        """
        if not error.may_have_committed or not self._has_marks:
            return False
        sequence = self._look_up(mark.writer, max(began + _SECONDS, monotonic() + _LEAST_SECONDS))
        if sequence is None:
            _log.info("a commit got no answer, and the database could not be asked in time")
            return False
        error.may_have_committed = sequence >= mark.sequence
        outcome = "committed" if error.may_have_committed else "not committed"
        _log.info("a commit got no answer. Its mark says: the transaction was %s", outcome)
        return error.may_have_committed

    def _look_up(self, writer: str, until: float) -> int | None:
        """Return the last committed sequence, or None if the database gives no answer in time."""
        while True:
            remaining = max(until - monotonic(), _SHORTEST_STATEMENT_SECONDS)
            try:
                with self._database.write(min(remaining, QUICK_SECONDS)) as transaction:
                    sequence = read_sequence(transaction, writer)
            except DatabaseUnavailableError:
                if monotonic() + _PAUSE_SECONDS > until:
                    return None
                time.sleep(_PAUSE_SECONDS)
            else:
                return sequence
