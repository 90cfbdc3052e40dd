"""Faults of SQLite's file, of its disk and of other programs that use it."""

import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.programs.running import Running


def file_of(running: Running) -> Path:
    """Return the path of the database."""
    return Path(running.database_url.removeprefix("sqlite:///"))


def removed(file: Path) -> Callable[[], object]:
    """Take the file its name. The returned function gives it back."""
    aside = file.with_name("aside.db")
    file.rename(aside)
    return lambda: aside.rename(file)


def replaced(file: Path) -> Callable[[], object]:
    """Put a copy in the place of the file. The returned function puts the file back."""
    aside = file.with_name("aside.db")
    file.rename(aside)
    shutil.copy(aside, file)
    return lambda: aside.replace(file)


def journal_removed(file: Path) -> Callable[[], object]:
    """Take the journal, which has the newest commits, its name. The returned function undoes it."""
    journal = file.with_name(f"{file.name}-wal")
    aside = file.with_name("aside")
    journal.rename(aside)
    return lambda: aside.rename(journal)


@contextmanager
def full_disk(running: Running) -> Iterator[None]:
    """Let no file of the server grow, or be written at all."""
    pid, limit = running.server.process.pid, resource.RLIMIT_FSIZE
    assert pid is not None
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (0, before[1]))
    yield
    resource.prlimit(pid, limit, before)


@contextmanager
def locked_file(running: Running) -> Iterator[None]:
    """Hold the write lock, as another program does."""
    file = running.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
