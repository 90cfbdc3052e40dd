"""From the first schema, with rows in it, to this one: nothing is lost, everything is counted."""

import json
import secrets
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import CaRole, CaState
from birthmark_sma.authority.devices import certificates_store, uniqueness
from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.activity import most_active
from birthmark_sma.authority.devices.revocation import change_device
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.devices.states import reinstate
from birthmark_sma.authority.initialisation import record_migration
from birthmark_sma.authority.key_tables import epochs, holders
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.epochs import TableState
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.authority.validation.validation_details import find_request
from birthmark_sma.errors import SchemaMismatchError
from birthmark_sma.protocol.replay import Repeat, SeenToken
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import check_schema, migrate, schema_revision
from birthmark_sma.storage.partitions import UNFORESEEN, list_partitions
from birthmark_sma.storage.schema import HEAD_REVISION
from tests.support.audit_rows import AuditWriter
from tests.support.authorities import execute, migrate_to, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.days import DAY, current_time, today
from tests.support.devices.actors import ACTOR
from tests.support.pki.chains import ca

OLD = "SELECT id, encrypted_nuc_hash, validated_at, request_ip FROM validation_history ORDER BY id"


@pytest.fixture
def old_database(empty_database: Database) -> Database:
    """A database at the first schema."""
    migrate_to(empty_database, "0001")
    return empty_database


def note(database: Database, at: datetime, reason: str, device_serial: str | None) -> None:
    """Write a row as the first schema's program did."""
    sqlite = database.dialect_name == "sqlite"
    execute(
        database,
        "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
        " validation_result, reason, device_serial, validated_at, request_ip)"
        " VALUES (:sealed, 1, 2, :result, :reason, :serial, :at, '192.0.2.7')",
        sealed=secrets.token_bytes(48),
        result="PASS" if reason == "genuine" else "FAIL",
        reason=reason,
        serial=device_serial,
        at=at.isoformat(" ", "microseconds") if sqlite else at,
    )


def register(database: Database, number: int, family: str) -> None:
    """Register a device as the first schema's program did."""
    tables = [1, 2, 3]
    execute(
        database,
        "INSERT INTO registered_devices VALUES (:serial, :hash, :tables, 'pem', :serial, 'pem',"
        " :hash, :family, NULL, 'active', :serial, '2026-01-01 00:00:00+00:00')",
        serial=f"device-{number}",
        hash=number.to_bytes(32, "big"),
        tables=json.dumps(tables) if database.dialect_name == "sqlite" else tables,
        family=family,
    )


def test_an_upgrade_keeps_and_counts_everything(old_database: Database) -> None:
    """Rows of months, of today, and of a clock that went wrong."""
    for days in (400, 40, 2, 1, 1, 0):
        note(old_database, current_time() - timedelta(days=days), "genuine", f"device-{days}")
    note(old_database, current_time(), "not_opened", None)
    note(old_database, current_time(), "device_revoked", "device-1")
    note(old_database, current_time() + timedelta(days=30), "genuine", "device-1")
    for number, family in enumerate(["Pi", "Pi", "Phone"]):
        register(old_database, number, family)
    before = rows_of(old_database, OLD)
    assert migrate(old_database) == ("0001", HEAD_REVISION)
    check_schema(old_database)
    assert rows_of(old_database, OLD) == before
    assert assert_counters_are_those_of_the_trail(old_database) == len(before) == 9
    with old_database.read() as connection:
        assert device_store.count_devices(connection) == 3
        assert device_store.count_by_family(connection) == {"Pi": 2, "Phone": 1}
    note(old_database, current_time(), "not_opened", None)
    ids = [row[0] for row in rows_of(old_database, OLD)]
    assert ids == sorted(set(ids))
    assert len(ids) == 10


def test_an_upgrade_is_an_act(old_database: Database) -> None:
    """The first one, in the transaction of the migration; a second run changes nothing."""
    for _ in range(2):
        migrate(old_database, partial(record_migration, ACTOR))
    acts = "SELECT id, act, actor, subjects, details FROM administrative_acts"
    [(number, act, actor, subjects, details)] = rows_of(old_database, acts)
    assert (number, act, actor, subjects) == (1, "authority.migrate", ACTOR.name, 1)
    states = {"before": {"schema": "0001"}, "after": {"schema": HEAD_REVISION}}
    assert json.loads(details) == states


def test_an_empty_database_is_no_act(empty_database: Database) -> None:
    """Its creation is the ceremony's."""
    migrate(empty_database, partial(record_migration, ACTOR))
    assert rows_of(empty_database, "SELECT id FROM administrative_acts") == []


def test_only_the_busiest_of_a_day_are_listed(old_database: Database) -> None:
    """As many as the program itself would list."""
    passes = Counter({f"device-{number:02}": 1 + number // 10 for number in range(40)})
    for serial in passes.elements():
        note(old_database, current_time(), "genuine", serial)
    migrate(old_database)
    assert rows_of(old_database, "SELECT count(*) FROM busiest_devices") == [(25,)]
    with old_database.read() as connection:
        active = most_active(connection, [current_time().date()], limit=10)
    assert [number for _, number in active] == [4] * 10


def test_an_upgrade_on_postgresql_leaves_old_rows_where_they_are(postgres_url: str) -> None:
    """Their table becomes a partition: its file is the same afterwards, so nothing was copied."""
    database = open_database(postgres_url)
    migrate_to(database, "0001")
    note(database, current_time() - timedelta(days=3), "genuine", "device")
    note(database, current_time() + timedelta(days=3), "genuine", "device")
    file = rows_of(database, "SELECT pg_relation_filenode('validation_history')")
    migrate(database)
    assert rows_of(database, "SELECT pg_relation_filenode('validation_history_before')") == file
    with database.read() as connection:
        first, *_, last = list_partitions(connection)
    assert first.name == "validation_history_before"
    assert first.begins is None
    assert first.ends is not None
    assert first.ends.time() == datetime.min.time()
    assert timedelta(0) < first.ends - current_time() <= timedelta(days=1)
    assert last.name == UNFORESEEN
    assert rows_of(database, "SELECT count(*) FROM validation_history_before") == [(1,)]
    assert rows_of(database, f"SELECT count(*) FROM {UNFORESEEN}") == [(0,)]
    assert rows_of(database, "SELECT count(*) FROM validation_history") == [(2,)]
    database.close()


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Pacific/Kiritimati", "Asia/Kolkata"])
def test_an_upgrade_in_any_zone(postgres_url: str, zone: str) -> None:
    """Threat 25: the old rows' partition ends at a midnight in UTC, whatever zone a session has."""
    database = open_database(f"{postgres_url}?options=-c%20TimeZone%3D{zone}")
    migrate_to(database, "0001")
    for ago in (timedelta(0), timedelta(days=1)):
        note(database, current_time() - ago, "genuine", "device")
    migrate(database)
    with database.read() as connection:
        first, following, *_ = list_partitions(connection)
    assert first.ends == following.begins
    assert first.ends == today() + DAY
    assert assert_counters_are_those_of_the_trail(database) == 2
    database.close()


def test_an_upgrade_from_before_the_ledger(empty_database: Database) -> None:
    """What was judged before keeps its row, and counts as no repeat; its token counts as new."""
    migrate_to(empty_database, "0002")
    note(empty_database, current_time(), "genuine", "device")
    note(empty_database, current_time(), "not_opened", None)
    assert migrate(empty_database) == ("0002", HEAD_REVISION)
    found = rows_of(empty_database, "SELECT caller, repeat FROM validation_history")
    assert found == [(None, None)] * 2
    sighting = SeenToken(bytes(16), "local")
    with empty_database.write() as transaction:
        assert replay_ledger.note(
            make_store(empty_database), transaction, [sighting, sighting], current_time()
        )[0] == [
            None,
            Repeat.REPLAYED,
        ]
    assert rows_of(empty_database, "SELECT count(*) FROM sighted_tokens") == [(1,)]


# --- serials that are one name


def register_as_0003(database: Database, serials: list[str]) -> None:
    """Register devices one after another, a minute apart, as the third schema's program did."""
    sqlite = database.dialect_name == "sqlite"
    with database.write() as transaction:
        transaction.execute(
            text(
                "INSERT INTO registered_devices (device_serial, nuc_hash, table_assignments,"
                " device_certificate, certificate_serial, device_public_key,"
                " public_key_fingerprint, device_family, status, provisioning_id, provisioned_at)"
                " VALUES (:serial, :hash, :tables, 'pem', :number, 'pem', :hash, 'Pi', 'active',"
                " :id, :at)"
            ),
            [
                {
                    "serial": serial,
                    "hash": number.to_bytes(32, "big"),
                    "tables": "[1, 2, 3]" if sqlite else [1, 2, 3],
                    "number": f"{number:x}",
                    "id": f"PROV-{number}",
                    "at": at.isoformat(" ", "microseconds") if sqlite else at,
                }
                for number, serial in enumerate(serials)
                for at in [current_time() + timedelta(minutes=number)]
            ],
        )


def test_names_that_collide_keep_working(empty_database: Database) -> None:
    """Threat 40: the oldest has the folded name, and the others theirs behind it."""
    migrate_to(empty_database, "0003")
    one_name = ["Cam-1", "cam-1", " CAM-1", "\uff23am-1"]
    register_as_0003(empty_database, [*one_name, "caf\u00e9", "cafe\u0301", "Solo", "\u2800"])
    assert migrate(empty_database) == ("0003", HEAD_REVISION)
    check_schema(empty_database)
    folded = dict(
        rows_of(empty_database, "SELECT device_serial, serial_folded FROM registered_devices")
    )
    assert folded == {
        "Cam-1": "cam-1",
        "cam-1": "cam-1\tPROV-1",
        " CAM-1": "cam-1\tPROV-2",
        "\uff23am-1": "cam-1\tPROV-3",
        "caf\u00e9": "caf\u00e9",
        "cafe\u0301": "caf\u00e9\tPROV-5",
        "Solo": "solo",
        "\u2800": "",
    }
    with empty_database.read() as connection:
        for serial in one_name:
            [found] = device_store.find_devices_named(connection, serial)
            assert found.device_serial == serial
        several = device_store.find_devices_named(connection, "CAM-1")
        assert [each.device_serial for each in several] == one_name
        assert device_store.find_devices_named(connection, "cam") == []
        [solo] = device_store.find_devices_named(connection, "SOLO")
        assert solo.device_serial == "Solo"
        assert uniqueness.list_collisions(connection, limit=10) == [
            ("caf\u00e9", "cafe\u0301"),
            ("Cam-1", "cam-1"),
            ("Cam-1", " CAM-1"),
            ("Cam-1", "\uff23am-1"),
        ]
        assert len(uniqueness.list_collisions(connection, limit=2)) == 2
        taken = [
            uniqueness.find_conflicts(connection, name, b"-", b"-") for name in ("SOLO", "cam-2")
        ]
    assert [each.device_serial for each in taken] == [True, False]


def test_a_large_register_is_folded_in_batches(empty_database: Database) -> None:
    """Every row of several batches, whatever order the database's language sorts by."""
    migrate_to(empty_database, "0003")
    serials = [f"{'Aa'[n % 2]}-{n // 2:05}" for n in range(11_000)]
    register_as_0003(empty_database, serials)
    migrate(empty_database)
    rows = dict(
        rows_of(empty_database, "SELECT device_serial, serial_folded FROM registered_devices")
    )
    assert rows == {
        serial: f"a-{n // 2:05}" + ("" if n % 2 == 0 else f"\tPROV-{n}")
        for n, serial in enumerate(serials)
    }


def test_an_upgrade_from_before_epochs(empty_database: Database) -> None:
    """Tables and devices have the first keys, and no overlap is open."""
    migrate_to(empty_database, "0008")
    register_as_0003(empty_database, ["camera"])
    for statement in (
        "INSERT INTO authority (id, tables, keys_per_table, created_at)"
        " VALUES (1, 6, 16, '2026-01-01 00:00:00.000000+00:00')",
        "INSERT INTO key_encryption_keys (kek_id, source, salt, wrapped_nuc_hash_key, created_at)"
        " SELECT 1, 'file', nuc_hash, nuc_hash, provisioned_at FROM registered_devices",
        "INSERT INTO key_tables (table_id, master_key, kek_id, created_at)"
        " SELECT 5, nuc_hash, 1, provisioned_at FROM registered_devices",
    ):
        execute(empty_database, statement)
    assert migrate(empty_database) == ("0008", HEAD_REVISION)
    check_schema(empty_database)
    with empty_database.read() as connection:
        assert epochs.list_states(connection) == [TableState(5, 0)]
        assert key_table_store.find_generation(connection) == 0
        device = device_store.find_device(connection, "camera")
        assert device is not None
        assert device.table_epochs == (0, 0, 0)
        assert holders.list_stragglers(connection, [5], limit=10) == []


def test_an_upgrade_from_before_stored_lists(empty_database: Database) -> None:
    """Every revocation is still to be listed, and the first list follows none."""
    migrate_to(empty_database, "0003")
    execute(
        empty_database,
        "INSERT INTO revoked_certificates VALUES ('ab', 'x', '2026-01-01 00:00:00.000000+00:00',"
        " 'superseded')",
    )
    assert migrate(empty_database) == ("0003", HEAD_REVISION)
    with empty_database.read() as connection:
        [some] = crl_store.iterate_listed(connection, "intermediate", datetime.now(UTC))
        assert [(each.certificate_serial, expires) for each, expires in some] == [("ab", None)]
        assert crl_store.find_newest_head(connection, "intermediate") is None


def test_an_upgrade_from_before_earlier_certificates(empty_database: Database) -> None:
    """Revocations get the ends that lists read from the certificates before; no key has rights."""
    migrate_to(empty_database, "0009")
    end = "2028-01-01 00:00:00.000000+00:00"
    for number, ends in enumerate(("NULL", f"'{end}'")):
        execute(
            empty_database,
            "INSERT INTO registered_devices (device_serial, nuc_hash, table_assignments,"
            " device_certificate, certificate_serial, device_public_key, public_key_fingerprint,"
            " device_family, status, provisioning_id, provisioned_at, certificate_expires_at)"
            " VALUES (:serial, :hash, :tables, '', :serial, '', :hash, 'Pi', 'revoked', :serial,"
            f" '{end}', {ends})",
            serial=f"{number}",
            hash=number.to_bytes(32, "big"),
            tables="[1, 2, 3]" if empty_database.dialect_name == "sqlite" else [1, 2, 3],
        )
    for serial in ("0", "1", "ab"):
        execute(
            empty_database,
            "INSERT INTO revoked_certificates (certificate_serial, device_serial, revoked_at,"
            f" revocation_reason) VALUES (:serial, :serial, '{end}', 'superseded')",
            serial=serial,
        )
    execute(
        empty_database,
        "INSERT INTO access_keys (key_id, name, scope, created_at, generation)"
        f" VALUES ('a', 'a', 'provision', '{end}', 1)",
    )
    assert migrate(empty_database) == ("0009", HEAD_REVISION)
    with empty_database.read() as connection:
        [some] = crl_store.iterate_listed(connection, "intermediate", datetime.now(UTC))
        [key] = access_key_store.all_keys(connection)
    assert {each.certificate_serial: expires for each, expires in some} == {
        "0": None,
        "1": datetime(2028, 1, 1, tzinfo=UTC),
        "ab": None,
    }
    assert not key.may_re_enrol
    assert rows_of(empty_database, "SELECT * FROM earlier_certificates") == []


def test_an_upgrade_reads_the_ends_of_certificates(
    empty_database: Database,
) -> None:
    """Also the reasons of revocations. What is no certificate has no end."""
    certificate = ca().root
    migrate_to(empty_database, "0001")
    for number in range(3):
        register(empty_database, number, "Pi")
    change = "UPDATE registered_devices SET "
    pem = certificate.public_bytes(Encoding.PEM).decode()
    execute(empty_database, change + "device_certificate = :pem", pem=pem)
    execute(empty_database, change + "device_certificate = 'none' WHERE device_serial = 'device-1'")
    execute(empty_database, change + "status = 'revoked' WHERE device_serial = 'device-2'")
    execute(
        empty_database,
        "INSERT INTO revoked_certificates VALUES"
        " ('device-2', 'device-2', '2026-01-01 00:00:00.000000+00:00', 'superseded')",
    )
    migrate(empty_database)
    with empty_database.read() as connection:
        found = device_search.search(connection, DeviceFilter(), limit=3)
    assert [each.certificate_expires_at for each in found] == [
        certificate.not_valid_after_utc,
        None,
        certificate.not_valid_after_utc,
    ]
    assert [(each.status_reason, each.status_changed_at) for each in found] == [
        (None, None),
        (None, None),
        ("superseded", datetime(2026, 1, 1, tzinfo=UTC)),
    ]


def test_an_upgrade_from_before_renewals(empty_database: Database) -> None:
    """No device has renewed, no certificate was exchanged, and nothing is ordered."""
    migrate_to(empty_database, "0001")
    register(empty_database, 1, "Pi")
    migrate_to(empty_database, "0010")
    ended = "2028-01-01 00:00:00.000000+00:00"
    execute(
        empty_database,
        "INSERT INTO earlier_certificates (certificate_serial, device_serial, certificate_issuer,"
        " public_key_fingerprint, replaced_at, replaced_by)"
        f" VALUES ('ab', 'device-1', 'intermediate', :mark, '{ended}', 'olga')",
        mark=bytes(32),
    )
    assert migrate(empty_database) == ("0010", HEAD_REVISION)
    with empty_database.read() as connection:
        [device] = device_search.search(connection, DeviceFilter(), limit=3)
        [(earlier, revocation)] = certificates_store.list_earlier(connection, "device-1")
        assert orders.list_orders(connection, limit=1) == []
    assert device.certificate_renewed_at is None
    assert (earlier.csr_sha256, earlier.exchanged_for, revocation) == (None, None, None)


def test_an_upgrade_from_before_request_ids(empty_database: Database) -> None:
    """Rows of before have none, and are found by everything else; a new row is found by it."""
    migrate_to(empty_database, "0013")
    now = current_time()
    note(empty_database, now - DAY, "genuine", "camera-1")
    migrate(empty_database)
    check_schema(empty_database)
    columns = "request_id, batch_position, token_digest, waited_us"
    assert rows_of(empty_database, f"SELECT {columns} FROM validation_history") == [(None,) * 4]
    new = AuditRow(bytes(48), 1, 1, "PASS", "genuine", "camera-1", now, None, request_id="new")
    with empty_database.write() as transaction:
        AuditWriter().write(transaction, [new])
    [found] = find_request(empty_database, "new")
    assert found.entry.validated_at == now


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL refuses it
def test_a_row_that_cannot_be_chained(empty_database: Database) -> None:
    """The migration says what to look for, and changes nothing."""
    migrate_to(empty_database, "0013")
    note(empty_database, current_time(), "genuine", "camera-1")
    change = "UPDATE validation_history SET validated_at = '{}'"
    for time in ("2026-11-30 12:00:00", "yesterday"):
        execute(empty_database, change.format(time))
        with pytest.raises(SchemaMismatchError, match=r"NOT LIKE '%\+00:00'"):
            migrate(empty_database, partial(record_migration, ACTOR))
        with empty_database.read() as connection:
            assert schema_revision(connection) == "0013"
    execute(empty_database, change.format("2026-11-30 12:00:00.000000+00:00"))
    migrate(empty_database, partial(record_migration, ACTOR))
    assert rows_of(empty_database, "SELECT writer FROM audit_batches ORDER BY writer") == [
        ("acts",),
        ("earlier",),
    ]


def test_an_upgrade_from_before_roles(empty_database: Database) -> None:
    """Keys of before keep their scopes and digests, and a key may have a role from then on."""
    migrate_to(empty_database, "0015")
    made = current_time()
    add = (
        "INSERT INTO access_keys (key_id, name, scope, created_at, generation, secret_digest, uses)"
        " VALUES (:key_id, :key_id, :scope, :made, 1, :digest, 3)"
    )
    at = made.isoformat(" ", "microseconds") if empty_database.dialect_name == "sqlite" else made
    for scope in ("provision", "validate", "admin"):
        execute(empty_database, add, key_id=scope, scope=scope, made=at, digest=bytes(32))
    migrate(empty_database)
    check_schema(empty_database)
    for scope in ("monitor", "read", "operate"):
        execute(empty_database, add, key_id=scope, scope=scope, made=at, digest=bytes(32))
    with pytest.raises(IntegrityError):
        execute(empty_database, add, key_id="x", scope="owner", made=at, digest=bytes(32))
    with empty_database.read() as connection:
        keys = access_key_store.all_keys(connection)
    assert {key.key_id: key.scope for key in keys} == {each.value: each for each in KeyScope}
    assert {(key.secret_digest, key.uses, key.created_at) for key in keys} == {(bytes(32), 3, made)}


def test_an_upgrade_puts_suspended_devices_on_hold(empty_database: Database) -> None:
    """A verifier that has the list alone knows of them from then on; nothing else is listed."""
    migrate_to(empty_database, "0001")
    for number in range(3):
        register(empty_database, number, "Pi")
    change = "UPDATE registered_devices SET status = "
    execute(empty_database, f"{change}'suspended' WHERE device_serial = 'device-1'")
    before = current_time()
    migrate(empty_database)
    with empty_database.read() as connection:
        [revocation] = ca_store.list_revocations(connection)
        found = device_store.find_device(connection, "device-1")
    assert (revocation.device_serial, revocation.certificate_serial) == ("device-1", "device-1")
    assert revocation.revocation_reason == "certificate_hold"
    assert before - DAY < revocation.revoked_at < current_time() + DAY
    assert found is not None
    assert (found.status_reason, found.status_changed_at) == (
        "certificate_hold",
        revocation.revoked_at,
    )
    assert change_device(empty_database, "device-1", reinstate(ACTOR)) == "device-1"
    with empty_database.read() as connection:
        assert ca_store.list_revocations(connection) == []


def test_an_upgrade_from_one_issuer(empty_database: Database) -> None:
    """Root and intermediate are the active ones, and all devices are under the intermediate."""
    authority = ca()
    migrate_to(empty_database, "0001")
    for name, certificate in (("root", authority.root), ("intermediate", authority.intermediate)):
        execute(
            empty_database,
            "INSERT INTO ca_certificates (name, certificate, created_at)"
            " VALUES (:name, :pem, '2026-01-01 00:00:00.000000+00:00')",
            name=name,
            pem=certificate.public_bytes(Encoding.PEM).decode(),
        )
    register(empty_database, 1, "Pi")
    assert migrate(empty_database) == ("0001", HEAD_REVISION)
    with empty_database.read() as connection:
        root, intermediate = ca_store.find_root_and_intermediate(connection)
        assert ca_store.count_devices_under(connection) == {"intermediate": 1}
        assert ca_store.find_roots_signature(connection) is None
    assert (root.role, root.state, root.issuer) == (CaRole.ROOT, CaState.ACTIVE, "root")
    assert intermediate.role is CaRole.INTERMEDIATE
    assert (intermediate.state, intermediate.issuer) == (CaState.ACTIVE, "root")
    assert intermediate.load() == authority.intermediate


def test_an_upgraded_authority_lives_where_it_is(empty_database: Database) -> None:
    """Nothing moves it: every command opens it."""
    migrate_to(empty_database, "0015")
    execute(
        empty_database,
        "INSERT INTO authority (id, tables, keys_per_table, created_at)"
        " VALUES (1, 10, 100, '2026-01-01 00:00:00.000000+00:00')",
    )
    assert migrate(empty_database) == ("0015", HEAD_REVISION)
    columns = "moving_to, moving_since, moved_at"
    assert rows_of(empty_database, f"SELECT {columns} FROM authority") == [(None,) * 3]
    check_schema(empty_database)
