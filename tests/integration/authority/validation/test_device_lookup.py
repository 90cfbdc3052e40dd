"""What verdicts ask for: the same on both kinds of database, however much is asked at once."""

from dataclasses import replace

import pytest

from birthmark_sma.authority.validation.device_lookup import find_devices
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from tests.integration.authority.devices.test_store import add, device
from tests.support.authorities import counted_statements


def test_standings_are_found_by_nuc_hash(database: Database) -> None:
    """Threat 14: a verdict asks for the device of a NUC hash, and learns that device's tables."""
    revoked = replace(device(2), status=DeviceStatus.REVOKED)
    add(database, device(1), revoked, device(3))
    with counted_statements(database) as statements, database.read() as connection:
        found = find_devices(
            connection, [device(1).nuc_hash, revoked.nuc_hash, b"\0" * 32, device(1).nuc_hash]
        )
    assert set(found) == {device(1).nuc_hash, revoked.nuc_hash}
    first, second = found[device(1).nuc_hash], found[revoked.nuc_hash]
    assert (first.device_serial, first.device_family) == ("device-0001", "Test")
    assert tuple(first.table_assignments) == (1, 6, 701)
    assert second.status is DeviceStatus.REVOKED
    assert sum("registered_devices" in statement for statement in statements) == 1


def test_no_standings_for_nobody(database: Database) -> None:
    """An empty question has an empty answer."""
    add(database, device(1))
    with database.read() as connection:
        assert find_devices(connection, []) == {}


@pytest.mark.parametrize("asked", [1, 2, 3, 64, 65, 1_000, 3_000])
def test_any_number_at_once(database: Database, asked: int) -> None:
    """Each is found, whatever power of two the number lies by."""
    many = [device(number) for number in range(asked)]
    add(database, *many, device(9_000))
    with database.read() as connection:
        found = find_devices(connection, [each.nuc_hash for each in many])
    assert {key: each.device_serial for key, each in found.items()} == {
        each.nuc_hash: each.device_serial for each in many
    }


@pytest.mark.parametrize("status", DeviceStatus)
def test_every_status_and_every_character(database: Database, status: DeviceStatus) -> None:
    """What was registered comes out as it went in."""
    odd = replace(device(1), device_serial="é\"\\',{}", device_family="日本 NULL", status=status)
    add(database, odd)
    with database.read() as connection:
        (found,) = find_devices(connection, [odd.nuc_hash]).values()
    assert (found.device_serial, found.device_family, found.status) == (
        odd.device_serial,
        odd.device_family,
        status,
    )
    assert tuple(found.table_assignments) == odd.table_assignments
