"""What a batch asks of the database and writes: alike on both kinds, however large it is."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.protocol.verdict import DeviceStatus, Reason
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.commit_marks import CommitMark
from tests.integration.authority.devices.test_store import add
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import counted_statements, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.devices.registered import device

NOW = datetime(2026, 3, 29, 23, 30, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 255, 256, 257, 1_000])
def test_batches_of_any_size(database: Database, size: int) -> None:
    """Each row is there once, and counted once, whatever statements a size is made up of."""
    rows = judged(NOW, [(Reason.GENUINE, f"device-{number % 7}") for number in range(size)])
    rows = [row._replace(table_id=number) for number, row in enumerate(rows)]
    with database.write() as transaction:
        AuditWriter().write(transaction, rows)
    found = rows_of(database, "SELECT table_id FROM validation_history")
    assert sorted(table_id for (table_id,) in found) == list(range(size))
    assert assert_counters_are_those_of_the_trail(database) == size


def test_every_reason_costs_the_same_statements(database: Database) -> None:
    """Threat 18: what was judged shows neither in their number nor in their text."""
    store = make_store(database)
    mark = CommitMark("writer", 1)
    with database.write() as transaction:  # reserves the ids of the others
        store.write(transaction, judged(NOW, [(Reason.GENUINE, "a device")]), mark)
    costs = set()
    for sequence, reason in enumerate(Reason, start=2):
        mark = CommitMark("writer", sequence)
        with database.write() as transaction, counted_statements(database) as statements:
            store.write(transaction, judged(NOW, [(reason, "a device")]), mark)
        costs.add(tuple(each for each in statements if not each.startswith("BEGIN")))
    assert len(costs) == 1
    assert len(costs.pop()) == (1 if database.dialect_name == "postgresql" else 5)


# --- the devices of a batch


def test_devices_are_found_by_nuc_hash(database: Database) -> None:
    """Threat 14: a verdict asks for the device of a NUC hash, and learns that device's tables."""
    revoked = replace(device(2), status=DeviceStatus.REVOKED)
    add(database, device(1), revoked, device(3))
    with counted_statements(database) as statements, database.read() as connection:
        found = (
            make_store(database)
            .find_devices(
                connection, [device(1).nuc_hash, revoked.nuc_hash, b"\0" * 32, device(1).nuc_hash]
            )
            .by_nuc_hash
        )
    assert set(found) == {device(1).nuc_hash, revoked.nuc_hash}
    first, second = found[device(1).nuc_hash], found[revoked.nuc_hash]
    assert (first.device_serial, first.device_family) == ("device-0001", "Test")
    assert tuple(first.table_assignments) == (1, 6, 701)
    assert tuple(first.table_epochs) == (0, 1, 2)
    assert second.status is DeviceStatus.REVOKED
    assert sum("registered_devices" in statement for statement in statements) == 1


def test_no_devices_for_nobody(database: Database) -> None:
    """An empty question has an empty answer."""
    add(database, device(1))
    with database.read() as connection:
        assert make_store(database).find_devices(connection, []) == ({}, 0)


@pytest.mark.parametrize("asked", [1, 2, 3, 64, 65, 1_000, 3_000])
def test_any_number_at_once(database: Database, asked: int) -> None:
    """Each is found, whatever power of two the number lies by."""
    many = [device(number) for number in range(asked)]
    add(database, *many, device(9_000))
    with database.read() as connection:
        sought = [each.nuc_hash for each in many]
        found = make_store(database).find_devices(connection, sought).by_nuc_hash
    assert {key: each.device_serial for key, each in found.items()} == {
        each.nuc_hash: each.device_serial for each in many
    }


@pytest.mark.parametrize("status", DeviceStatus)
def test_every_status_and_every_character(database: Database, status: DeviceStatus) -> None:
    """What was registered comes out as it went in."""
    odd = replace(device(1), device_serial="é\"\\',{}", device_family="日本 NULL", status=status)
    add(database, odd)
    with database.read() as connection:
        (found,) = (
            make_store(database).find_devices(connection, [odd.nuc_hash]).by_nuc_hash.values()
        )
    assert (found.device_serial, found.device_family, found.status) == (
        odd.device_serial,
        odd.device_family,
        status,
    )
    assert tuple(found.table_assignments) == odd.table_assignments
