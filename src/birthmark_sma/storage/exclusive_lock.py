"""Take a lock that lets only one process at a time do a job on a database.

On PostgreSQL this is an advisory lock. On SQLite it is a lock file beside the database file.
The module never waits for a lock: it returns at once that another process holds it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, select

from birthmark_sma.storage.advisory_locks import AdvisoryLock
from birthmark_sma.storage.engine import Database


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
