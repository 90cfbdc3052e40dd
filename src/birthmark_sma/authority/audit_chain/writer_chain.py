"""The chain of one validation writer, in the memory of its thread.

The stores of validation own one each and call `extend` in the transaction of a batch. A transaction
may fail, run again, or end in a way that nobody knows. The number of the transaction tells, so no
database is asked: see `storage.outages.writer_commits`.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from birthmark_sma.authority.audit_chain.batches import (
    ROW_FIELDS,
    SALT_BYTES,
    START,
    AuditBatch,
    End,
    Kind,
    floor_to_hour,
    hash_rows,
    seal,
)
from birthmark_sma.storage.outages.commit_marks import CommitMark

_TIME = ROW_FIELDS.index("validated_at")


class WriterChain:
    """The end of a chain that is durable, and the one that the last transaction made of it.

    Owned by one writer thread.
    """

    def __init__(self) -> None:
        self._mark = CommitMark("", 0)  # of the last transaction that had a batch
        self._durable: End = START
        self._made: End = START

    def extend(
        self, mark: CommitMark | None, rows: Sequence[Sequence[Any]], first_id: int
    ) -> AuditBatch:
        """Return the batch of the rows of this transaction, which follows the durable end.

        `mark` is that of the transaction. A writer counts only transactions that are durable. So a
        greater number says that the transaction before was, and the same number that it was not.
        After an unknown end the writer goes on under another name, and so begins another chain.
        Without a mark, each batch is a chain of its own.
        """
        if mark is None:
            mark = CommitMark(secrets.token_hex(16), 1)
        if mark.writer != self._mark.writer:
            self._durable = START
        elif mark.sequence > self._mark.sequence:
            self._durable = self._made
        salt = secrets.token_bytes(SALT_BYTES)
        batch = seal(
            mark.writer,
            self._durable,
            Kind.VALIDATIONS,
            hash_rows(rows, salt),
            hour=floor_to_hour(rows[0][_TIME]),
            first_id=first_id,
            rows=len(rows),
            salt=salt,
        )
        self._mark, self._made = mark, batch.end
        return batch
