"""The certificates of devices: which end when, and that a revocation covers them all."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.devices import certificates_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.certificates_store import EarlierCertificate, Revocation
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import counted_statements, execute, rows_of
from tests.support.devices.registered import device
from tests.support.schemas import give_schema

NOW = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def add(database: Database, number: int, ends: datetime | None, **fields: object) -> None:
    """Register a device whose certificate ends at a time."""
    new = replace(device(number), certificate_expires_at=ends, **fields)  # type: ignore[arg-type]
    with database.write() as transaction:
        assert device_store.add_devices(transaction, [new])


def supersede(database: Database, number: int, serial: str, ends: datetime | None) -> None:
    """Give a device an earlier certificate, which was superseded two days ago."""
    earlier = EarlierCertificate(
        certificate_serial=serial,
        device_serial=device(number).device_serial,
        certificate_issuer="intermediate",
        public_key_fingerprint=serial.encode(),
        not_before=None,
        certificate_expires_at=ends,
        replaced_at=NOW - DAY,
        replaced_by="olga",
    )
    with database.write() as transaction:
        certificates_store.add_earlier(transaction, earlier)
        certificates_store.supersede_earlier(transaction, earlier.device_serial, NOW - 2 * DAY)


def revoke_all(
    database: Database, *numbers: int, reason: str, since: datetime | None = None
) -> None:
    """Revoke all certificates of devices."""
    serials = [device(number).device_serial for number in numbers]
    with database.write() as transaction:
        certificates_store.revoke_all(
            transaction, serials, revoked_at=NOW, reason=reason, invalid_since=since
        )


def revocations(database: Database) -> dict[str, str]:
    """Return the reasons of all revocations by certificate."""
    query = "SELECT certificate_serial, revocation_reason FROM revoked_certificates"
    return dict(rows_of(database, query))


def test_a_revocation_covers_all_certificates_that_have_not_expired(database: Database) -> None:
    """With issuer and end, which the list needs. In one act, however many devices."""
    for number in range(1, 301):
        add(database, number, NOW + DAY)
    add(database, 500, NOW + DAY)
    supersede(database, 1, "aa01", NOW + DAY)
    supersede(database, 1, "aa02", None)
    supersede(database, 2, "aa03", NOW - DAY)
    execute(database, "DELETE FROM revoked_certificates")
    with counted_statements(database) as statements:
        revoke_all(database, *range(1, 301), reason="privilege_withdrawn")
    assert len([each for each in statements if each.startswith("INSERT")]) <= 1
    found = revocations(database)
    assert set(found) == {f"{number:x}" for number in range(1, 301)} | {"aa01", "aa02"}
    ends = "SELECT DISTINCT certificate_issuer FROM revoked_certificates"
    assert rows_of(database, ends) == [("intermediate",)]
    unknown = "SELECT certificate_serial FROM revoked_certificates WHERE certificate_expires_at"
    assert rows_of(database, unknown + " IS NULL") == [("aa02",)]
    revoke_all(database, 1, 2, reason="unspecified")
    assert revocations(database) == found


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("key_compromise", "key_compromise"), ("cessation_of_operation", "superseded")],
)
def test_a_compromise_outranks_superseded(database: Database, reason: str, expected: str) -> None:
    """Pictures stay valid after `superseded`; those of a compromised device may be forged."""
    add(database, 1, NOW + DAY)
    add(database, 2, NOW + DAY)
    supersede(database, 1, "aa01", NOW + DAY)
    supersede(database, 2, "aa02", NOW + DAY)
    since = NOW - 30 * DAY if reason == "key_compromise" else None
    revoke_all(database, 1, reason=reason, since=since)
    assert revocations(database) == {"1": reason, "aa01": expected, "aa02": "superseded"}
    query = "SELECT certificate_serial FROM revoked_certificates WHERE invalid_since IS NOT NULL"
    listed = {row[0] for row in rows_of(database, query)}
    assert listed == ({"1", "aa01"} if since else set())


def test_certificates_by_their_serial_numbers(database: Database) -> None:
    """Current and earlier, with the state of the device and of the certificate."""
    add(database, 1, NOW + DAY)
    supersede(database, 1, "aa01", NOW)
    with database.read() as connection:
        found = certificates_store.find_certificates(connection, ["1", "aa01", "ff"])
    assert set(found) == {"1", "aa01"}
    current, earlier = found["1"], found["aa01"]
    assert (current.is_current, current.revocation, current.certificate_expires_at) == (
        True,
        None,
        NOW + DAY,
    )
    assert (earlier.is_current, earlier.revocation) == (
        False,
        Revocation(NOW - 2 * DAY, "superseded"),
    )
    assert current.device_serial == earlier.device_serial == "device-0001"
    assert current.status is earlier.status is DeviceStatus.ACTIVE


def test_devices_by_the_end_of_their_certificate(database: Database) -> None:
    """Page by page, each device once, also those whose ends are equal; only those in use."""
    for number in range(1, 8):
        add(database, number, NOW + (number // 3) * DAY)
    add(database, 8, NOW + 90 * DAY)
    add(database, 9, None)
    add(database, 10, NOW, status=DeviceStatus.REVOKED)
    add(database, 11, NOW - DAY, status=DeviceStatus.SUSPENDED)
    found: list[str] = []
    after = None
    with database.read() as connection:
        while page := certificates_store.list_expiring(
            connection, NOW + 30 * DAY, limit=2, after=after
        ):
            found += [each.device_serial for each in page]
            after = page[-1].certificate_expires_at, page[-1].device_serial
        count = certificates_store.count_expiring
        assert count(connection, NOW, NOW + 30 * DAY, 100) == 7
        assert count(connection, NOW, NOW + 30 * DAY, 3) == 3
        assert count(connection, NOW - DAY, NOW, 100) == 1
    assert found == [f"device-{number:04}" for number in (11, 1, 2, 3, 4, 5, 6, 7)]


def test_the_index_of_the_ends_is_used(postgres_url: str) -> None:
    """Threat 44: neither the list nor the count reads the whole register."""
    give_schema(postgres_url)
    database = open_database(postgres_url)
    execute(
        database,
        "INSERT INTO registered_devices (device_serial, nuc_hash, table_assignments,"
        " device_certificate, certificate_serial, device_public_key, public_key_fingerprint,"
        " device_family, status, provisioning_id, provisioned_at, certificate_expires_at)"
        " SELECT n::text, n::text::bytea, '{1,2,3}', '', n::text, '', n::text::bytea, 'Test',"
        " 'active', n::text, now(), now() + n * interval '1 hour'"
        " FROM generate_series(1, 20000) AS n",
    )
    execute(database, "ANALYZE registered_devices")

    def scans() -> tuple[int, int]:
        execute(database, "SELECT pg_stat_force_next_flush()")
        [(sequential, by_index)] = rows_of(
            database,
            "SELECT seq_scan, (SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname ="
            " 'registered_devices_expiry_idx') FROM pg_stat_user_tables"
            " WHERE relname = 'registered_devices'",
        )
        return sequential, by_index

    before = scans()
    with database.write() as connection:
        now = datetime.now(UTC)
        page = certificates_store.list_expiring(connection, now + 9 * DAY, limit=50)
        place = page[-1].certificate_expires_at, page[-1].device_serial
        certificates_store.list_expiring(connection, now + 9 * DAY, limit=50, after=place)
        assert certificates_store.count_expiring(connection, now, now + 3 * DAY, 10_000) > 70
    sequential, by_index = scans()
    assert sequential == before[0]
    assert by_index >= before[1] + 3  # the planner itself looks at the index as well
    database.close()
