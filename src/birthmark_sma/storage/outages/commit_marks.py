"""Commit marks: the number of a writer's transaction, stored by the transaction itself.

If COMMIT gets no answer, the stored number tells whether the transaction was committed
(`storage.outages.writer_commits`). There is one row for each writer, not one for each transaction.

On PostgreSQL `storage.postgresql_driver` sends the mark with BEGIN, so it costs no round trip. That
is also why its lock proves something: a transaction that got its answer to BEGIN holds the lock of
its writer's row until it ends. `read_sequence` waits for that lock. SQLite stores no marks: see
docs/adr/0011-unknown-commits.md.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, text

from birthmark_sma.storage.portable_sql import insert_or_update
from birthmark_sma.storage.schema import writer_commits

_UPSERT = (
    "INSERT INTO writer_commits (writer, sequence, committed_at) VALUES ({}, {}, now())"
    " ON CONFLICT (writer) DO UPDATE"
    " SET sequence = excluded.sequence, committed_at = excluded.committed_at"
)
_NAME = "sma_commit_mark_1"  # another statement needs another name
_READ = text(
    "INSERT INTO writer_commits (writer, sequence, committed_at) VALUES (:writer, 0, now())"
    " ON CONFLICT (writer) DO UPDATE SET committed_at = excluded.committed_at"
    " RETURNING sequence"
)
PREPARE = f"PREPARE {_NAME} (text, bigint) AS {_UPSERT.format('$1', '$2')}".encode()
"""Prepares the statement of all marks on a connection. Planning it each time costs as much again as
running it."""


class CommitMark(NamedTuple):
    """The transaction number `sequence` of `writer`, which is random hexadecimal text.

    A writer counts its committed transactions from 1, without gaps.
    """

    writer: str
    sequence: int

    def statement(self, *, prepared: bool) -> bytes:
        """Return the SQL that stores this mark. `prepared` means that PREPARE has been run."""
        values = f"'{self.writer}'", f"{self.sequence}"
        if prepared:
            return f"EXECUTE {_NAME}({', '.join(values)})".encode()
        return _UPSERT.format(*values).encode()


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
