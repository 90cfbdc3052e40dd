"""Locks that processes take on a database, so that a job does not run twice at the same time.

On PostgreSQL these are advisory locks. On SQLite a write transaction excludes all other writers,
and `only_one` uses a lock file beside the database file. The numbers of advisory locks are shared
by a whole database, so all of them are defined here, and no other module may define one.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, unique
from pathlib import Path

from sqlalchemy import Connection, func, select, text

from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import metadata

_PATIENCE = "30s"  # lock_timeout of `hold_snapshot`


@unique
class AdvisoryLock(IntEnum):
    """One lock for each job that must not run twice at the same time.

    A number is never reused for another job.
    """

    MIGRATION = 0x5_3A_0001
    PARTITIONS = 0x5_3A_0002
    ABUSE_FLAGS = 0x5_3A_0003
    KEY_ROTATION = 0x5_3A_0004
    CRL_PUBLICATION = 0x5_3A_0005
    VERDICTS = 0x5_3A_0006
    """Shared by each batch of validations, exclusive for the commit of a change of devices'
    statuses: docs/adr/0012-status-changes-and-verdicts.md."""
    RENEWAL_ORDERS = 0x5_3A_0007
    ACTS = 0x5_3A_0008
    """Held by each transaction with an act until its end: acts have one chain."""
    CHECKPOINTS = 0x5_3A_0009
    COARSENING = 0x5_3A_000A


def wait_for_lock(transaction: Connection, lock: AdvisoryLock) -> None:
    """Wait for the lock and hold it until the transaction ends.

    On SQLite this does nothing: a write transaction excludes all other writers already.
    """
    if transaction.dialect.name == "postgresql":
        transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock.value})


def hold_snapshot(connection: Connection) -> None:
    """Make all queries of this transaction see one snapshot. Call it before the first query.

    On PostgreSQL the tables and partitions are also locked against DROP and ALTER. Other
    transactions can still read and write rows. On SQLite a transaction has one snapshot anyway.
    Raises DatabaseUnavailableError if the locks are not free within 30 seconds.
    """
    if connection.dialect.name != "postgresql":
        return
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    # The snapshot is taken under the locks, so it contains no partition that is dropped meanwhile.
    # ACCESS SHARE, the lock of a SELECT, conflicts only with ACCESS EXCLUSIVE, as DROP takes it.
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(each.name) for each in metadata.sorted_tables)
    connection.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE}'"))
    connection.execute(text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))
    connection.execute(text("SET LOCAL lock_timeout = DEFAULT"))


@contextmanager
def only_one(database: Database, lock: AdvisoryLock) -> Iterator[bool]:
    """Yield True and hold the lock until the block ends, or yield False if another process has it.

    The lock is also released when the process ends, even if it is killed.
    """
    if database.dialect_name == "postgresql":
        # The lock belongs to this transaction, so the connection stays open for the whole block.
        with database.read() as connection:
            yield connection.execute(
                select(func.pg_try_advisory_xact_lock(lock.value))
            ).scalar_one()
        return
    database_file = Path(database.engine.url.database or "").absolute()
    with _locked(database_file.with_name(f"{database_file.name}-{lock.name.lower()}")) as alone:
        yield alone


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Yield True and hold the lock file, or yield False if another process holds it.

    The database file itself is not locked here: SQLite has its own locks on it.
    """
    file = _lock(path)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        try:
            # Removed before the lock is released: a process that opened this file meanwhile then
            # sees in `_lock` that its file is no longer the one at the path.
            path.unlink(missing_ok=True)
        finally:
            os.close(file)


def _lock(path: Path) -> int | None:
    """Return the descriptor of the locked file, or None if another process has locked it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass
        # The previous holder removed the file after we opened it and before we locked it.
        # Our lock is on a removed file and excludes no process, so open a new one.
        os.close(file)
