"""Commit marks: the number of a writer's transaction, stored by the transaction itself.

If COMMIT gets no answer, the stored number tells whether the transaction was committed
(`storage.outages.writer_commits`). There is one row for each writer, not one for each transaction.

On PostgreSQL `storage.postgresql_driver` sends the mark with BEGIN, so it costs no round trip, and
sends COMMIT only after the answer. That is also why its lock proves something: a transaction that
got its answer to BEGIN holds the lock of its writer's row until it ends. `read_sequence` waits for
that lock. SQLite stores no marks: see docs/adr/0011-unknown-commits.md.
"""

import struct
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, text

from birthmark_sma.storage.portable_sql import insert_or_update
from birthmark_sma.storage.postgresql.pipeline import Statement
from birthmark_sma.storage.schema.validations import writer_commits

_MARK = (
    "INSERT INTO writer_commits (writer, sequence, committed_at)"
    " VALUES ($1::text, $2::bigint, now())"
    " ON CONFLICT (writer) DO UPDATE"
    " SET sequence = excluded.sequence, committed_at = excluded.committed_at"
)
# In the same statement, because each statement has its cost. For the rest of the transaction the
# server ends a statement that takes too long. It also ends a transaction that gets no statement for
# so long, as after a cut of the network: its locks would stay until TCP notices it.
_MARK_AND_TIMEOUTS = (
    _MARK + " RETURNING set_config('statement_timeout', $3::text, true),"
    " set_config('idle_in_transaction_session_timeout', $3::text, true),"
    " set_config('lock_timeout', $4::text, true)"
)
_SEQUENCE = struct.Struct("!q")
_READ = text(
    "INSERT INTO writer_commits (writer, sequence, committed_at) VALUES (:writer, 0, now())"
    " ON CONFLICT (writer) DO UPDATE SET committed_at = excluded.committed_at"
    " RETURNING sequence"
)


class Timeouts(NamedTuple):
    """Timeouts of the server's, in milliseconds."""

    statement: int
    lock: int


class CommitMark(NamedTuple):
    """The transaction number `sequence` of `writer`, which is random hexadecimal text.

    A writer counts its committed transactions from 1, without gaps.
    """

    writer: str
    sequence: int

    def statement(self, timeouts: Timeouts | None) -> Statement:
        """Return the statement that stores this mark, and sets timeouts of the transaction."""
        values = [self.writer.encode(), _SEQUENCE.pack(self.sequence)]
        if timeouts is None:
            return Statement(_MARK, values)
        return Statement(
            _MARK_AND_TIMEOUTS, [*values, b"%d" % timeouts.statement, b"%d" % timeouts.lock]
        )


def write_mark(transaction: Connection, mark: CommitMark, now: datetime) -> None:
    """Store a mark by a statement of its own, on either kind of database."""
    columns = writer_commits.c
    upsert = insert_or_update(
        transaction, writer_commits, replace=(columns.sequence, columns.committed_at)
    )
    transaction.execute(upsert, {**mark._asdict(), "committed_at": now})


def read_sequence(transaction: Connection, writer: str) -> int:
    """Return the number of the last committed transaction of a writer, or 0 if there is none.

    PostgreSQL only. Wait until every transaction that has stored a mark of this writer has ended.
    This writes to the row. So if the commit of this transaction is replicated to a synchronous
    standby, then all earlier commits of the writer are replicated as well. Believe the number only
    after this transaction was committed.
    """
    return int(transaction.execute(_READ, {"writer": writer}).scalar_one())


def forget_before(transaction: Connection, when: datetime) -> None:
    """Delete the marks of writers that committed nothing since `when`."""
    transaction.execute(delete(writer_commits).where(writer_commits.c.committed_at < when))
