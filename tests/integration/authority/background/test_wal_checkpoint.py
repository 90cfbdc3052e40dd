"""SQLite's write-ahead log shrinks by itself after a long reader has ended."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from birthmark_sma.authority.background.wal_checkpoint import WalCheckpoint
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import execute
from tests.support.programs.running import start, wait_until

MIB = 1024 * 1024
LIMIT = 16 * MIB
LONG = 40 * MIB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a database."""
    return tmp_path / "sma.db"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    """A database with a table."""
    opened = open_database(f"sqlite:///{file}")
    execute(opened, "CREATE TABLE noted (content blob)")
    yield opened
    opened.close()


def write(database: Database, megabytes: int = 1) -> None:
    """Add rows, in one transaction for each MiB."""
    for _ in range(megabytes):
        execute(database, f"INSERT INTO noted VALUES (zeroblob({MIB}))")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Hold a snapshot, as a backup does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield


def test_the_log_shrinks_without_a_write(database: Database, file: Path) -> None:
    """The task leaves a log alone that a reader needs, and does not wait for the reader."""
    task = WalCheckpoint(database)
    with reading(file):
        write(database, LONG // MIB)
        assert (database.wal_bytes or 0) > LONG
        began = time.monotonic()
        database.shrink_wal()
        assert time.monotonic() - began < 5
        assert (database.wal_bytes or 0) > LONG
    task.start()
    try:
        wait_until(lambda: (database.wal_bytes or 0) <= LIMIT, 20)
    finally:
        task.close()
    assert file.with_name("sma.db-wal").stat().st_size == database.wal_bytes


def test_the_log_shrinks_with_the_next_writes(database: Database, file: Path) -> None:
    """Also in a command, which has no background tasks."""
    with reading(file):
        write(database, LONG // MIB)
    for _ in range(3):
        write(database)
    assert (database.wal_bytes or 0) <= LIMIT


def test_a_short_log_is_left_alone(database: Database) -> None:
    write(database)
    before = database.wal_bytes
    assert before
    database.shrink_wal()
    assert database.wal_bytes == before


def test_a_server_says_how_long_its_log_is_and_truncates_it(tmp_path: Path) -> None:
    running = start(tmp_path / "data", "sqlite:", SMA_TABLES="50")
    file = Path(running.database_url.removeprefix("sqlite:///"))

    def told() -> float:
        with running.client() as client:
            lines = client.get("/metrics").text.splitlines()
        [line] = (each for each in lines if each.startswith("sma_sqlite_wal_bytes "))
        return float(line.rpartition(" ")[2])

    with running.server:
        with reading(file), running.database() as other:
            execute(other, "CREATE TABLE noted (content blob)")
            write(other, LONG // MIB)
            wait_until(lambda: told() > LONG, 20)
            execute(other, "DROP TABLE noted")
        wait_until(lambda: told() <= LIMIT, 20)
