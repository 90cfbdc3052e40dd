"""Records of key-encryption keys: one, or a chain of them while a rotation lasts."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.store import WrappedTable
from birthmark_sma.storage.engine import Database

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FIRST = KekRecord(1, "passphrase", b"salt", b"\x00wrapped\xff", NOW)
SECOND = KekRecord(2, "command", b"", b"other", NOW, wrapped_predecessor=b"the first")


@pytest.fixture
def rotating(database: Database) -> Database:
    """A database in which a rotation has begun."""
    with database.write() as transaction:
        kek_store.add_kek(transaction, FIRST)
    with database.write() as transaction:
        assert kek_store.add_successor(transaction, SECOND, b"the second")
    return database


def test_there_is_none_at_first(database: Database) -> None:
    with database.read() as connection:
        assert kek_store.list_keks(connection) == []
        assert kek_store.newest_kek_id(connection) is None


def test_a_successor_is_linked_both_ways(rotating: Database) -> None:
    """All else comes back byte for byte."""
    with rotating.read() as connection:
        linked = replace(FIRST, wrapped_successor=b"the second")
        assert kek_store.list_keks(connection) == [linked, SECOND]
        assert kek_store.newest_kek_id(connection) == 2
    with rotating.write() as transaction:
        assert kek_store.lock_newest_kek(transaction) == 2


def test_of_two_successors_one_wins(rotating: Database) -> None:
    """And the loser has changed nothing."""
    with rotating.write() as transaction:
        rival = replace(SECOND, salt=b"rival")
        assert not kek_store.add_successor(transaction, rival, b"rival")
    test_a_successor_is_linked_both_ways(rotating)


def test_what_is_retired_leaves_no_bridge(rotating: Database) -> None:
    with rotating.write() as transaction:
        assert kek_store.retire_all_but(transaction, 2) == 1
    with rotating.read() as connection:
        assert kek_store.list_keks(connection) == [replace(SECOND, wrapped_predecessor=None)]


def test_what_is_in_use_cannot_be_retired(rotating: Database) -> None:
    """Nothing that is wrapped under a key can lose it."""
    with rotating.write() as transaction:
        key_table_store.add_tables(transaction, [WrappedTable(0, b"", 1)], NOW)
    with pytest.raises(IntegrityError), rotating.write() as transaction:
        kek_store.retire_all_but(transaction, 2)
    with rotating.read() as connection:
        assert len(kek_store.list_keks(connection)) == 2


def test_no_repr_shows_what_is_wrapped() -> None:
    shown = repr(replace(SECOND, wrapped_successor=b"successor"))
    assert "other" not in shown
    assert "first" not in shown
    assert "successor'" not in shown
