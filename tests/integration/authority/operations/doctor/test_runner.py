"""What the examination finds, once on each kind of database, and that it changes nothing."""

import secrets
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import psycopg
import pytest

from birthmark_sma.authority.access.keys import KeyTerms, create_key
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.succession import Successions
from birthmark_sma.authority.devices.uniqueness import COLLISION_SEPARATOR
from birthmark_sma.authority.key_tables.epochs import end_overlaps
from birthmark_sma.authority.operations.doctor.findings import Finding, State, worst
from birthmark_sma.authority.operations.doctor.runner import examine
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.renewal.windows import RenewalCriteria
from birthmark_sma.config import Settings
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.schema import metadata
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import TABLES, execute, new_camera, quiet, rows_of, small_settings
from tests.support.cameras.table_epochs import let_overlaps_end, rotate
from tests.support.databases.postgres import Postgres
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import revoke_device, suspend_device
from tests.support.http.tls import TestCa

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """With a passphrase that nobody has to be warned of."""
    return small_settings(tmp_path, database_url, ca_password=secrets.token_urlsafe(32))


def found(
    settings: Settings, now: datetime | None = None, *, durable: bool = False
) -> dict[str, Finding]:
    """The worst finding of each name; the shared PostgreSQL is forgetful, and that is known."""
    findings: dict[str, Finding] = {}
    for each in examine(settings, now or datetime.now(UTC), quiet):
        if each.name == "durability" and not durable:
            continue
        known = findings.get(each.name)
        findings[each.name] = (
            each if known is None or worst([known, each]) != known.state else known
        )
    return findings


def bad(findings: dict[str, Finding]) -> dict[str, State]:
    """What is to be put right."""
    wrong = (State.WARNING, State.CRITICAL)
    return {name: each.state for name, each in findings.items() if each.state in wrong}


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


def test_an_authority_that_is_well(authority: Authority, settings: Settings) -> None:
    """Nothing is to be put right, and everything was looked at."""
    findings = found(settings)
    assert bad(findings) == {}
    looked = {"version", "database", "writing", "schema", "integrity", "key tables", "secrets"}
    looked |= {"serials", "device certificates"}
    looked |= {"root CA", "intermediate CA", "clock", "access keys", "retention", "private files"}
    assert looked | {"disk"} <= findings.keys()
    assert ("partitions" in findings) == (authority.database.dialect_name == "postgresql")


def test_nothing_is_changed(authority: Authority, settings: Settings) -> None:
    """Every row is as it was; PostgreSQL would have refused any other statement."""
    new_camera(authority, "camera-1")
    before = everything(authority)
    url = settings.resolved_database_url
    if not settings.uses_sqlite:
        url += f"?options={quote('-c default_transaction_read_only=on')}"
    reading = small_settings(
        settings.data_dir, url, ca_password=settings.ca_password, kek_file=settings.kek_file
    )
    expected = {} if settings.uses_sqlite else {"writing": State.CRITICAL}
    assert bad(found(reading)) == expected
    assert everything(authority) == before


def test_serials_that_are_one_name_are_listed(authority: Authority, settings: Settings) -> None:
    """Threat 40: which two, however they are spelled."""
    for serial in ("Cam-1", "stand-in"):
        new_camera(authority, serial)
    execute(
        authority.database,
        "UPDATE registered_devices SET device_serial = 'CAM-1',"
        " serial_folded = :folded WHERE device_serial = 'stand-in'",
        folded=f"cam-1{COLLISION_SEPARATOR}PROV-1",
    )
    findings = found(settings)
    assert bad(findings) == {"serials": State.WARNING}
    assert "'CAM-1' is the same name as 'Cam-1'" in findings["serials"].sentence


def test_devices_that_are_not_on_the_list(authority: Authority, settings: Settings) -> None:
    """An operator's own SQL revoked them. The same act by `sma devices` lists them."""
    for serial in ("good", "held", "lost"):
        new_camera(authority, serial)
    suspend_device(authority.database, "held")
    change = "UPDATE registered_devices SET status = 'revoked' WHERE device_serial = 'lost'"
    execute(authority.database, change)
    findings = found(settings)
    assert bad(findings) == {"device statuses": State.WARNING}
    assert findings["device statuses"].sentence.endswith(": lost")
    revoke_device(authority.database, "lost", "unspecified")
    findings = found(settings)
    assert bad(findings) == {}
    assert findings["device statuses"].sentence.endswith(": 1 revoked, 1 suspended")


def everything(authority: Authority) -> dict[str, list[tuple[object, ...]]]:
    return {
        table.name: rows_of(authority.database, f"SELECT * FROM {table.name} ORDER BY 1")
        for table in metadata.sorted_tables
    }


def test_a_database_that_is_away(tmp_path: Path) -> None:
    """Files are looked at all the same."""
    settings = small_settings(tmp_path, "postgresql://127.0.0.1:1/nowhere")
    findings = found(settings)
    assert bad(findings) == {"database": State.CRITICAL}
    assert "private files" in findings


def test_where_nothing_is(tmp_path: Path) -> None:
    """No empty file is made, as SQLite would; and an empty one is not filled."""
    settings = small_settings(tmp_path, None)
    assert bad(found(settings)) == {"database": State.CRITICAL}
    assert not (tmp_path / "sma.db").exists()
    (tmp_path / "sma.db").touch(0o600)
    assert "empty" in found(settings)["database"].sentence
    assert (tmp_path / "sma.db").stat().st_size == 0


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, None)
    (tmp_path / "sma.db").touch(0o600)
    (tmp_path / "sma.db").write_bytes(b"no database at all" * 1000)
    assert bad(found(settings)) == {"database": State.CRITICAL}


def test_half_an_authority(settings: Settings) -> None:
    """A schema without an authority, and an authority without all of its tables."""
    database = open_database(settings.resolved_database_url)
    if settings.uses_sqlite:
        with closing(sqlite3.connect(settings.data_dir / "sma.db")) as file:
            file.execute("CREATE TABLE other (x)")
            (settings.data_dir / "sma.db").chmod(0o600)
    assert bad(found(settings)) == {"schema": State.CRITICAL}
    migrate(database)
    assert bad(found(settings)) == {"authority": State.CRITICAL}
    database.close()


@pytest.mark.parametrize(
    ("statement", "name", "words"),
    [
        ("DELETE FROM key_tables WHERE table_id = 3", "key tables", "sma tables populate"),
        ("UPDATE key_tables SET master_key = encrypted_nuc_hash", "secrets", "backup"),
        (
            "INSERT INTO earlier_table_keys SELECT table_id, 1, encrypted_nuc_hash, kek_id,"
            " created_at, created_at FROM key_tables WHERE table_id = 2",
            "secrets",
            "backup",
        ),
        ("UPDATE alembic_version SET version_num = '0002'", "schema", "sma migrate"),
        ("UPDATE alembic_version SET version_num = '9999'", "schema", "version"),
        ("ALTER TABLE device_flags DROP COLUMN usual", "schema", "Restore"),
        ("DROP TABLE resubmitted_tokens", "schema", "Restore"),
    ],
)
def test_what_is_damaged(
    authority: Authority, settings: Settings, statement: str, name: str, words: str
) -> None:
    zeros = "zeroblob(60)" if settings.uses_sqlite else r"'\x00'::bytea"
    execute(authority.database, statement.replace("encrypted_nuc_hash", zeros))
    finding = found(settings)[name]
    assert finding.state is State.CRITICAL
    assert words in f"{finding.remedy}"


def test_missing_tables_of_devices_are_to_be_restored(
    authority: Authority, settings: Settings
) -> None:
    """Threat 12: new ones would be other keys than those that devices hold."""
    new_camera(authority, "camera-1")
    execute(authority.database, "DELETE FROM key_tables WHERE table_id = 0")
    finding = found(settings)["key tables"]
    assert finding.sentence == f"{TABLES - 1} of {TABLES} key tables are there"
    assert "backup" in f"{finding.remedy}"


def test_overlaps_that_end_soon(authority: Authority, settings: Settings) -> None:
    """A warning as soon as the week before their end has begun and devices would be cut off."""
    new_camera(authority, "camera-1")
    assert "one key that is accepted" in found(settings)["table keys"].sentence
    rotate(authority, overlap=timedelta(days=8))
    finding = found(settings)["table keys"]
    assert finding.state is State.WELL
    assert f"Earlier keys of {TABLES} key tables are accepted" in finding.sentence
    end_overlaps(authority.database, range(TABLES), actor=ACTOR)
    rotate(authority, overlap=timedelta(days=6))
    finding = found(settings)["table keys"]
    assert finding.state is State.WARNING
    assert finding.sentence.startswith("1 device has earlier keys of key tables")
    assert "sma tables stragglers" in f"{finding.remedy}"
    let_overlaps_end(authority.database)
    assert found(settings)["table keys"].state is State.WELL


def test_a_wrong_secret(authority: Authority, settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.touch(0o600)
    other.write_bytes(secrets.token_bytes(32))
    assert bad(found(changed(settings, kek_file=other))) == {"secrets": State.CRITICAL}


@pytest.mark.parametrize(
    ("years", "expected"),
    [
        (-1, {"clock": State.CRITICAL}),
        (4.1, {"intermediate CA": State.WARNING}),
        (4.9, {"intermediate CA": State.CRITICAL}),
        (6, {"intermediate CA": State.CRITICAL}),
        (9, {"intermediate CA": State.CRITICAL, "root CA": State.WARNING}),
        (9.9, {"intermediate CA": State.CRITICAL, "root CA": State.CRITICAL}),
    ],
)
def test_what_ends(
    authority: Authority, settings: Settings, years: float, expected: dict[str, State]
) -> None:
    """By a clock that is as many years ahead."""
    wrong = bad(found(settings, NOW + years * 365 * DAY))
    wrong.pop("partitions", None)
    assert wrong == expected


def test_device_certificates_that_end(authority: Authority, settings: Settings) -> None:
    """Of devices in use: from 30 days before the end until 90 days after it."""
    for serial in ("used", "revoked"):
        new_camera(authority, serial)
    revoke_device(authority.database, "revoked", "key_compromise")
    for days, sentence in (
        (690, None),
        (710, "end within 30 days: 1; that have expired in the last 90 days: 0"),
        (740, "end within 30 days: 0; that have expired in the last 90 days: 1"),
        (830, None),
    ):
        finding = found(settings, NOW + days * DAY)["device certificates"]
        assert finding.state is (State.WELL if sentence is None else State.WARNING), days
        assert (sentence or "No certificate") in finding.sentence
        assert sentence is None or "sma devices re-enrol" in str(finding.remedy)


def test_a_renewal_order_with_stragglers(authority: Authority, settings: Settings) -> None:
    """Only when its time is over, and until it is cancelled."""
    new_camera(authority, "straggler")
    execute(
        authority.database,
        "UPDATE registered_devices SET provisioned_at = '2026-01-01 00:00:00.000000+00:00'",
    )
    given = orders.give_order(authority.database, RenewalCriteria(), 7 * DAY, ACTOR)
    assert found(settings, NOW + 6 * DAY)["renewal orders"].state is State.WELL
    finding = found(settings, NOW + 8 * DAY)["renewal orders"]
    assert finding.state is State.WARNING
    assert "have not renewed: 1" in finding.sentence
    assert f"sma renewals cancel {given.id}" in str(finding.remedy)
    orders.cancel(authority.database, given.id, actor=ACTOR)
    assert found(settings, NOW + 8 * DAY)["renewal orders"].state is State.WELL


def test_audit_rows_of_the_future(authority: Authority, settings: Settings) -> None:
    """On PostgreSQL they lie outside of their day's partition, too."""
    with authority.database.write() as transaction:
        AuditWriter().write(transaction, judged(NOW + 20 * DAY, [(Reason.NOT_OPENED, "old")] * 3))
    findings = found(settings)
    assert findings["clock"].state is State.WARNING
    if not settings.uses_sqlite:
        assert findings["partitions"].sentence.startswith("3 audit rows")


def test_days_without_partitions(authority: Authority, settings: Settings) -> None:
    if settings.uses_sqlite:
        assert "partitions" not in found(settings)
        return
    execute(authority.database, f"DROP TABLE validation_history_{NOW + 2 * DAY:%Y%m%d}")
    assert bad(found(settings, NOW)) == {"partitions": State.WARNING}


def test_a_history_that_nobody_prunes(authority: Authority, settings: Settings) -> None:
    """A day late is no reason to warn: it is pruned every hour, by whole days."""
    with authority.database.write() as transaction:
        AuditWriter().write(transaction, judged(NOW - 12 * DAY, [(Reason.NOT_OPENED, "old")]))
    wrong = bad(found(changed(settings, audit_retention_days=5)))
    assert wrong.pop("retention") is State.WARNING
    assert bad(found(changed(settings, audit_retention_days=30))).get("retention") is None


def key(authority: Authority, name: str, expires_at: datetime | None = None) -> None:
    create_key(
        authority.database, KeyTerms(name, KeyScope.VALIDATE, expires_at=expires_at), actor=ACTOR
    )


def test_access_keys(authority: Authority, settings: Settings) -> None:
    """Where callers must show keys and there is none, no server starts."""
    elsewhere = changed(settings, host="0.0.0.0")
    assert bad(found(settings)) == {}
    assert bad(found(elsewhere)) == {"access keys": State.CRITICAL}
    key(authority, "newsroom-1")
    assert bad(found(elsewhere)) == {}
    key(authority, "newsroom-2", datetime.now(UTC) + 5 * DAY)
    finding = found(elsewhere)["access keys"]
    assert finding.state is State.WARNING
    assert "newsroom-2" in finding.sentence


def test_tls_that_ends(authority: Authority, settings: Settings, tmp_path: Path) -> None:
    file = TestCa(tmp_path / "ca").issue("server", end=30 * DAY).certificate_file
    https = changed(settings, tls_cert=file)
    assert bad(found(https)) == {}
    assert bad(found(https, NOW + 11 * DAY))["TLS"] is State.WARNING
    assert bad(found(https, NOW + 28 * DAY))["TLS"] is State.CRITICAL
    file.write_bytes(b"nothing")
    assert bad(found(https)) == {"TLS": State.CRITICAL}
    file.unlink()
    assert bad(found(https)) == {"TLS": State.CRITICAL}


def test_files_that_others_can_read(authority: Authority, settings: Settings) -> None:
    """Threat 29."""
    assert settings.kek_file is not None
    settings.kek_file.chmod(0o644)
    wrong = bad(found(settings))
    assert wrong["private files"] is State.WARNING
    assert wrong["secrets"] is State.CRITICAL  # such a file is not read


@pytest.mark.parametrize(
    ("free", "state"), [(1e6, State.CRITICAL), (4e9, State.WARNING), (50e9, State.WELL)]
)
def test_a_disk_that_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: State
) -> None:
    usage = SimpleNamespace(total=100e9, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert found(small_settings(tmp_path, None))["disk"].state is state


def test_a_postgresql_that_keeps_all(own_postgres: Postgres, tmp_path: Path) -> None:
    """And one that does not, which is critical: what was answered could be lost."""
    url = own_postgres.create_database("sma")
    settings = small_settings(tmp_path, url)
    assert found(settings, durable=True)["durability"].state is State.WELL
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE sma SET synchronous_commit = off")
    findings = found(settings, durable=True)
    assert findings["durability"].state is State.CRITICAL


def test_a_user_who_may_not_write(postgres_url: str, tmp_path: Path) -> None:
    """What it may not do is named."""
    settings = small_settings(tmp_path, postgres_url)
    database = open_database(postgres_url)
    migrate(database)
    database.close()
    role, password = f"reader_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    place = postgres_url.partition("@")[2]
    reader = small_settings(tmp_path, f"postgresql://{role}:{password}@{place}")
    try:
        finding = found(changed(reader, kek_file=settings.kek_file))["schema"]
        assert finding.state is State.CRITICAL
        assert "DELETE on access_keys" in finding.sentence
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        finding = found(changed(reader, kek_file=settings.kek_file))["schema"]
        assert finding.state is State.CRITICAL, "no audit row could get its number"
        assert "USAGE on authority_id_seq" in finding.sentence
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
        assert found(changed(reader, kek_file=settings.kek_file))["schema"].state is State.WELL
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_successors_content_the_doctor(authority: Authority, settings: Settings) -> None:
    """It names the command for each step, and is content once a successor is active."""
    acts = Successions(authority.database, settings, actor=ACTOR)
    later = NOW + 4.1 * 365 * DAY
    finding = found(settings, later)["intermediate CA"]
    assert "sma ca rotate" in (finding.remedy or "")
    time.sleep(1.1)  # certificates have whole seconds: so this one ends later than the active one
    acts.rotate(prepare_only=True)
    assert "--activate intermediate-2" in (found(settings, later)["intermediate CA"].remedy or "")
    acts.activate("intermediate-2")
    findings = found(settings, NOW)
    assert findings["intermediate CA"].state is State.WELL
    assert "retiring" in findings["intermediate CA"].sentence
    late = NOW + 8.5 * 365 * DAY
    # An intermediate that is rotated now would end with the root.
    for name in ("root CA", "intermediate-2 CA"):
        assert "sma ca roll-root" in (found(settings, late)[name].remedy or "")
    acts.roll_root()
    findings = found(settings, late)
    assert findings["root CA"].state is State.WELL
    assert "sma ca roll-root" in (findings["root-2 CA"].remedy or "")
    new_camera(authority, "exposed")
    acts.compromise("intermediate-3")
    finding = found(settings)["intermediate-3 CA"]
    assert finding.state is State.WARNING
    assert "1 device has certificates under intermediate-3" in finding.sentence
