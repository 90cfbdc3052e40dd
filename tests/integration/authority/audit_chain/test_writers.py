"""The chain of a real writer stays whole when transactions fail, and several processes write."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Finding, Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.initialisation import record_migration
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.migration import migrate
from tests.integration.storage.test_upgrade import note
from tests.support.authorities import migrate_to, new_camera, opened, rows_of
from tests.support.days import current_time
from tests.support.devices.actors import ACTOR

CALLER = Caller("192.0.2.7")


def verified(database: Database) -> tuple[list[Finding], Verified]:
    """Return what is wrong with a trail, and what was verified."""
    done = Verified()
    with database.read() as connection:
        return list(verify(DatabaseReader(connection), None, [], done)), done


def validate(authority: Authority, times: int) -> None:
    """Validate tokens, each alone, from several threads."""
    camera = new_camera(authority, f"camera-{id(authority)}-{times}")
    futures = [authority.validator.submit(camera.token(), CALLER) for _ in range(times)]
    for each in futures:
        each.result(30)


def test_two_servers(authority: Authority, settings: Settings) -> None:
    """Each has a chain of its own, and ids that the other has not."""
    with opened(settings) as other, ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(validate, times=40), (authority, other)))
        found, done = verified(authority.database)
    assert (found, done.rows, done.chains) == ([], 80, 3)


@pytest.mark.parametrize("is_known", [True, False])
def test_transactions_that_fail(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """After the rows were written: if the end is unknown, another chain begins."""
    store: Any = authority.validator._store
    write, failures = store.write, iter([True, False, True, True])

    def failing(transaction: Connection, *arguments: Any) -> None:
        write(transaction, *arguments)
        if next(failures, False):
            error = DatabaseUnavailableError(fault=DatabaseFault.AWAY)
            error.try_again = is_known
            raise error

    monkeypatch.setattr(store, "write", failing)
    camera = new_camera(authority, "camera")
    answered = 0
    for _ in range(8):
        try:
            authority.validator.submit(camera.token(), CALLER).result(30)
            answered += 1
        except DatabaseUnavailableError:
            assert not is_known
    found, done = verified(authority.database)
    assert (found, done.rows) == ([], answered)
    assert answered >= 5


def test_rows_from_before(empty_database: Database) -> None:
    """The migration covers them, with gaps in the ids and days that interleave."""
    migrate_to(empty_database, "0014")
    for days in (2, 1, 1, 2, 0, 1, 0):
        note(empty_database, current_time() - timedelta(days=days), "genuine", f"device-{days}")
    with empty_database.write() as transaction:
        transaction.exec_driver_sql("DELETE FROM validation_history WHERE id = 3")
    migrate(empty_database, partial(record_migration, ACTOR))
    found, done = verified(empty_database)
    assert (found, done.rows, done.acts) == ([], 6, 1)
    chains = "SELECT DISTINCT writer FROM audit_batches ORDER BY writer"
    assert rows_of(empty_database, chains) == [("acts",), ("earlier",)]
    for change, fault in (
        ("DELETE FROM validation_history WHERE id = 2", "deleted"),
        ("UPDATE validation_history SET device_serial = 'x' WHERE id = 4", "changed"),
    ):
        with empty_database.write() as transaction:
            transaction.exec_driver_sql(change)
        assert fault in {each.fault for each in verified(empty_database)[0]}
