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
    # The directory: SQLite's own file has locks of its own, and another file would stay behind.
    directory = os.open(Path(database.engine.url.database or "").absolute().parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(directory)
