"""CA certificates and revocations at rest."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import CaRole, Revocation, StoredCa
from birthmark_sma.storage.engine import Database
from tests.support.pki.revocations import add_revocation

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def add_ca(database: Database, ca: StoredCa) -> None:
    """Store a CA certificate."""
    with database.write() as transaction:
        ca_store.add_ca(transaction, ca, NOW)


def test_a_ca_comes_back_by_name(database: Database) -> None:
    """The root has no key here, the intermediate its encrypted one."""
    root = StoredCa("root", "certificate of the root", CaRole.ROOT)
    intermediate = StoredCa("intermediate", "certificate", CaRole.INTERMEDIATE, "encrypted key")
    add_ca(database, root)
    add_ca(database, intermediate)
    with database.read() as connection:
        assert ca_store.find_ca(connection, "root") == root
        assert ca_store.find_ca(connection, "intermediate") == intermediate
        assert ca_store.find_ca(connection, "another") is None


def test_a_ca_is_never_replaced(database: Database) -> None:
    """There is one of each name, the first."""
    add_ca(database, StoredCa("root", "first", CaRole.ROOT))
    with pytest.raises(IntegrityError):
        add_ca(database, StoredCa("root", "second", CaRole.ROOT))
    with database.read() as connection:
        found = ca_store.find_ca(connection, "root")
    assert found is not None
    assert found.certificate == "first"


def test_no_repr_shows_the_key() -> None:
    """Threat 28: not even the encrypted key gets into a log."""
    assert "encrypted key" not in repr(
        StoredCa("intermediate", "certificate", CaRole.INTERMEDIATE, "encrypted key")
    )


def test_revocations_are_listed_oldest_first(database: Database) -> None:
    """Each with everything that the CRL says about it."""
    revocations = [
        Revocation(f"{number:040x}", f"device-{number}", NOW - timedelta(days=number), "superseded")
        for number in range(5)
    ]
    with database.write() as transaction:
        for revocation in revocations:
            add_revocation(transaction, revocation)
    with database.read() as connection:
        assert ca_store.list_revocations(connection) == revocations[::-1]


def test_a_certificate_is_revoked_once(database: Database) -> None:
    """The first reason and time stand."""
    revocation = Revocation("ab", "device", NOW, "superseded")
    with database.write() as transaction:
        add_revocation(transaction, revocation)
    with pytest.raises(IntegrityError), database.write() as transaction:
        add_revocation(transaction, revocation)
    with database.read() as connection:
        assert ca_store.list_revocations(connection) == [revocation]
