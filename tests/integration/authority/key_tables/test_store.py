"""Key tables at rest: added, and never changed but for the key that they are wrapped under."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.store import WrappedTable
from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import rows_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEK = KekRecord(1, "passphrase", b"salt", b"\x00wrapped\xff", NOW)


def add_kek(database: Database, kek: KekRecord = KEK) -> None:
    """Record a key-encryption key."""
    with database.write() as transaction:
        kek_store.add_kek(transaction, kek)


def add_tables(database: Database, *tables: WrappedTable) -> None:
    """Add tables."""
    with database.write() as transaction:
        key_table_store.add_tables(transaction, tables, NOW)


def list_tables(database: Database) -> list[WrappedTable]:
    """Return all tables."""
    with database.read() as connection:
        return key_table_store.list_tables(connection)


def test_the_sizes_are_those_of_the_first(database: Database) -> None:
    """A second authority is refused, and the sizes stay as they were fixed."""
    with database.read() as connection:
        assert key_table_store.find_sizes(connection) is None
    with database.write() as transaction:
        assert key_table_store.add_authority(transaction, TableSizes(10, 100), NOW)
    with database.write() as transaction:
        assert not key_table_store.add_authority(transaction, TableSizes(2_500, 1_000), NOW)
    with database.read() as connection:
        assert key_table_store.find_sizes(connection) == TableSizes(10, 100)


def test_one_of_many_founders_wins(database: Database, database_url: str) -> None:
    """Eight programs that claim a database at once: one gets it."""
    claimed: list[bool] = []
    start = threading.Barrier(8)

    def claim() -> None:
        own = open_database(database_url)
        start.wait(30)
        with own.write() as transaction:
            claimed.append(key_table_store.add_authority(transaction, TableSizes(10, 100), NOW))
        own.close()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == [False] * 7 + [True]


def test_tables_come_back_in_order(database: Database) -> None:
    """Whatever the order in which they were added."""
    add_kek(database)
    tables = [WrappedTable(table_id, bytes([table_id]) * 60, 1) for table_id in range(12)]
    add_tables(database, *reversed(tables))
    assert list_tables(database) == tables
    with database.read() as connection:
        assert key_table_store.list_table_ids(connection) == list(range(12))
        assert key_table_store.count_tables(connection) == 12


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


def test_a_table_is_wrapped_anew(database: Database) -> None:
    """Those under another key are taken, a few at a time, until there are none."""
    add_kek(database)
    add_kek(database, replace(KEK, kek_id=2))
    add_tables(database, *(WrappedTable(n, b"old %d" % n, 1) for n in range(5)))
    taken: list[int] = []
    for _ in range(3):
        with database.write() as transaction:
            outdated = key_table_store.take_outdated(transaction, 2, 2)
            taken += [table.table_id for table in outdated]
            key_table_store.put_tables(
                transaction, [WrappedTable(t.table_id, b"new", 2) for t in outdated]
            )
    assert taken == list(range(5))
    assert list_tables(database) == [WrappedTable(n, b"new", 2) for n in range(5)]
    with database.write() as transaction:
        assert key_table_store.take_outdated(transaction, 2, 2) == []
        assert key_table_store.count_by_kek(transaction) == {2: 5}


def test_no_repr_shows_a_wrapped_key() -> None:
    assert "wrapped key" not in repr(WrappedTable(1, b"wrapped key", 1))
