"""Key tables and key-encryption keys at rest: added, never changed."""

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy.exc import IntegrityError

from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage import key_tables
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.key_tables import StoredKek, WrappedTable
from tests.support.authorities import rows_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEK = StoredKek(1, "passphrase", b"salt", b"\x00wrapped\xff")


def add_kek(database: Database, kek: StoredKek = KEK) -> None:
    """Record a key-encryption key."""
    with database.write() as transaction:
        key_tables.add_kek(transaction, kek, NOW)


def add_tables(database: Database, *tables: WrappedTable) -> None:
    """Add tables."""
    with database.write() as transaction:
        key_tables.add_tables(transaction, tables, NOW)


def list_tables(database: Database) -> list[WrappedTable]:
    """Return all tables."""
    with database.read() as connection:
        return key_tables.list_tables(connection)


def test_the_sizes_are_those_of_the_first(database: Database) -> None:
    """A second authority is refused, and the sizes stay as they were fixed."""
    with database.read() as connection:
        assert key_tables.find_sizes(connection) is None
    with database.write() as transaction:
        assert key_tables.add_authority(transaction, TableSizes(10, 100), NOW)
    with database.write() as transaction:
        assert not key_tables.add_authority(transaction, TableSizes(2_500, 1_000), NOW)
    with database.read() as connection:
        assert key_tables.find_sizes(connection) == TableSizes(10, 100)


def test_one_of_many_founders_wins(database: Database, database_url: str) -> None:
    """Eight programs that claim a database at once: one gets it."""
    claimed: list[bool] = []
    start = threading.Barrier(8)

    def claim() -> None:
        own = open_database(database_url)
        start.wait(30)
        with own.write() as transaction:
            claimed.append(key_tables.add_authority(transaction, TableSizes(10, 100), NOW))
        own.close()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == [False] * 7 + [True]


def test_the_newest_kek_is_current(database: Database) -> None:
    """Its record comes back byte for byte."""
    with database.read() as connection:
        assert key_tables.current_kek(connection) is None
    add_kek(database)
    newer = StoredKek(2, "file", b"", b"other")
    add_kek(database, newer)
    with database.read() as connection:
        assert key_tables.current_kek(connection) == newer
    with pytest.raises(IntegrityError):
        add_kek(database)


def test_tables_come_back_in_order(database: Database) -> None:
    """Whatever the order in which they were added."""
    add_kek(database)
    tables = [WrappedTable(table_id, bytes([table_id]) * 60, 1) for table_id in range(12)]
    add_tables(database, *reversed(tables))
    assert list_tables(database) == tables
    with database.read() as connection:
        assert key_tables.list_table_ids(connection) == list(range(12))
        assert key_tables.count_tables(connection) == 12


def test_a_table_that_exists_keeps_its_key(database: Database) -> None:
    """Threats 11 and 12: adding a table again changes nothing, and disturbs no new one."""
    add_kek(database)
    add_tables(database, WrappedTable(5, b"first", 1))
    add_tables(database, WrappedTable(5, b"second", 1), WrappedTable(6, b"new", 1))
    assert list_tables(database) == [WrappedTable(5, b"first", 1), WrappedTable(6, b"new", 1)]


def test_the_moment_of_a_table_is_kept(database: Database) -> None:
    """Operators see when a table was made."""
    add_kek(database)
    add_tables(database, WrappedTable(5, b"first", 1))
    assert str(rows_of(database, "SELECT created_at FROM key_tables")[0][0]).startswith("2026-01-0")
