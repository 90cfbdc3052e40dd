"""Let only one program at a time do what must not be done twice at once."""

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
    """Say whether nobody else does this on this database, and keep others from it until the end.

    It ends with the process, however that ends.
    """
    if database.dialect_name == "postgresql":
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
    """Hold a lock file, unless another process does. SQLite's own file has locks of its own."""
    file = _lock(path)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(file)


def _lock(path: Path) -> int | None:
    """Return the descriptor of a locked file, or None where another process has it locked."""
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
        os.close(file)  # its holder removed it between our opening and locking it: another is due
