"""The database of validation: what the stores for PostgreSQL and SQLite must do alike.

`make_store` chooses the store of a database. `service` and `replay_ledger` call it in the writer
thread, `background.retention` and `sma doctor` find and delete old tokens. No other module of
validation may ask which database it is.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, datetime
from typing import Any, Protocol

from sqlalchemy import Connection

from birthmark_sma.authority.devices.activity import DeviceCount
from birthmark_sma.authority.validation.records import AuditRow, FoundDevices, LedgerEntry
from birthmark_sma.authority.validation.store_postgresql import PostgresqlStore
from birthmark_sma.authority.validation.store_sqlite import SqliteStore
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.portable_sql import choose


class ValidationStore(Protocol):
    """The statements of validation on one kind of database.

    * Atomicity: each method works in the transaction of its caller and never commits. So a batch
      is recorded as a whole, or not at all.
    * Durability: nothing is durable before the caller's commit. No answer may leave before it.
    * Errors: every method raises SQLAlchemyError. `Database.write` turns a fault of the database,
      a deadlock included, into DatabaseUnavailableError, and the caller may try the whole
      transaction again. After an error the transaction must not be used.
    * Timing: text and number of the statements must not depend on a verdict or its reason.
    * Lock order: rows are locked in the order of their keys within a statement.

    An instance belongs to one writer thread, which has counter rows of its own.
    """

    def hold_statuses(self, transaction: Connection) -> None:
        """Make every change of a device's status wait for the end of this transaction.

        Call it first. So no verdict is committed after a change that it did not see. On SQLite
        there is nothing to do: a transaction for writing excludes all others from its start.
        """
        ...

    def find_devices(self, connection: Connection, nuc_hashes: Sequence[bytes]) -> FoundDevices:
        """Return the devices with these HMACs of NUC hashes, by HMAC, in one statement.

        The same statement reads the generation of the key tables. An HMAC that belongs to no device
        is missing in the result. Devices must not be cached: several processes share the database
        (docs/adr/0003).
        """
        ...

    def add_tokens(
        self, transaction: Connection, entries: Mapping[bytes, LedgerEntry], now: datetime
    ) -> Set[bytes]:
        """Add tokens to the replay ledger by digest; return the digests that were not there.

        Existing rows stay as they are. If another transaction adds the same token, this waits for
        its end: the primary key decides which of them is first.
        """
        ...

    def read_tokens(
        self, transaction: Connection, digests: Sequence[bytes], *, lock: bool = False
    ) -> dict[bytes, LedgerEntry]:
        """Return these tokens of the replay ledger by digest.

        With `lock`, no other transaction can change them until this one ends. This sees what
        others committed while `add_tokens` waited for them.
        """
        ...

    def count_repeats(
        self, transaction: Connection, times: Mapping[SeenToken, int], now: datetime
    ) -> dict[SeenToken, int]:
        """Add to the number of times that each caller repeated a token; return the new numbers."""
        ...

    def write(
        self, transaction: Connection, rows: Sequence[AuditRow], mark: CommitMark | None = None
    ) -> None:
        """Write the audit rows of a batch, its link of the chain, and the counters of its minutes.

        All are in one transaction, so that they always agree (docs/adr/0006, docs/adr/0019). There
        are 1 to 100,000 rows. `mark` is that of the transaction
        (`audit_chain.writer_chain.WriterChain.extend`).
        """
        ...

    def add_activity(
        self, transaction: Connection, day: date, counts: Mapping[str, DeviceCount], *, least: int
    ) -> dict[str, int]:
        """Add to the counts of devices on a day, by serial, in one statement or two.

        Return by serial the passes of those that now have more than `least` passes on this day. Any
        thread may call it.
        """
        ...

    def find_old_tokens(self, connection: Connection, before: datetime, *, limit: int) -> list[Any]:
        """Return the row ids of up to `limit` tokens first seen before a time, oldest first.

        The ledger has no index on the age of a token (docs/adr/0009), so this may return fewer
        row ids than there are. It returns none only if the oldest rows are not old.
        """
        ...

    def delete_tokens(
        self, transaction: Connection, row_ids: Sequence[Any], before: datetime
    ) -> list[bytes]:
        """Delete the tokens that `find_old_tokens` found; return their digests.

        A newer row that has taken over a row id since then is kept.
        """
        ...


def make_store(database: Database) -> ValidationStore:
    """Return a new store for this kind of database, for one writer thread."""
    postgresql: Callable[[], ValidationStore] = PostgresqlStore
    return choose(database.engine, postgresql=postgresql, sqlite=SqliteStore)()
