"""The tables as operators know them: names, constraints, indexes, and times with their zone."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, inspect, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.authority import authority
from birthmark_sma.storage.schema.certificates import revoked_certificates
from tests.support.audit_rows import append_rows
from tests.support.authorities import execute, rows_of

NOW = datetime(2026, 3, 29, 1, 30, 0, 1, tzinfo=UTC)

NAMES_OF_THE_CONTRACT = {
    "key_tables": {"table_id", "master_key", "created_at"},
    "registered_devices": {
        "device_serial",
        "nuc_hash",
        "table_assignments",
        "device_certificate",
        "device_public_key",
        "device_family",
        "provisioned_at",
    },
    "validation_history": {
        "id",
        "encrypted_nuc_hash",
        "table_id",
        "key_index",
        "validation_result",
        "device_serial",
        "validated_at",
        "request_ip",
    },
    "revoked_certificates": {
        "certificate_serial",
        "device_serial",
        "revoked_at",
        "revocation_reason",
    },
}


def test_the_names_that_operators_rely_on(database: Database) -> None:
    """Section 7 of the contract: queries that were written down keep working."""
    for table, columns in NAMES_OF_THE_CONTRACT.items():
        with database.read() as connection:
            found = {column["name"] for column in inspect(connection).get_columns(table)}
        assert columns <= found


def test_no_column_holds_a_secret_by_name(database: Database) -> None:
    """Threat 13: no nonce beside a ciphertext, no root key, no key-encryption key."""
    with database.read() as connection:
        inspector = inspect(connection)
        columns = {
            column["name"]
            for table in inspector.get_table_names()
            for column in inspector.get_columns(table)
        }
    assert not columns & {"nonce", "passphrase", "password", "private_key", "kek", "key"}


# --- constraints


def insert_device(database: Database, number: int, **changes: Any) -> None:
    """Register a device in which everything has this number, but for the changes."""
    values: dict[str, Any] = {
        "device_serial": f"device-{number}",
        "nuc_hash": number.to_bytes(32, "big"),
        "table_assignments": [1, 2, 3] if database.dialect_name == "postgresql" else "[1, 2, 3]",
        "device_certificate": "certificate",
        "certificate_serial": f"{number:x}",
        "device_public_key": "key",
        "public_key_fingerprint": number.to_bytes(32, "big"),
        "device_family": "Test",
        "app_version": None,
        "status": "active",
        "provisioning_id": f"PROV-20260101-{number}",
        "provisioned_at": "2026-01-01 00:00:00+00:00",
    } | changes
    columns = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    execute(database, f"INSERT INTO registered_devices ({columns}) VALUES ({places})", **values)


@pytest.mark.parametrize(
    "column",
    [
        "device_serial",
        "nuc_hash",
        "public_key_fingerprint",
        "certificate_serial",
        "provisioning_id",
    ],
)
def test_what_is_unique_about_a_device(database: Database, column: str) -> None:
    """Threats 4 and 9: the database itself refuses a second device with any of these."""
    insert_device(database, 1)
    insert_device(database, 2)
    first = rows_of(database, f"SELECT {column} FROM registered_devices ORDER BY device_serial")[0]
    with pytest.raises(IntegrityError):
        insert_device(database, 3, **{column: first[0]})


def test_a_status_that_nobody_knows_is_refused(database: Database) -> None:
    """Threat 6: no device can have a status that the verdict does not judge."""
    for status in ("", "Active", "deleted"):
        with pytest.raises(IntegrityError):
            insert_device(database, 1, status=status)


def test_what_every_device_has(database: Database) -> None:
    """No device is half made."""
    for column in (
        "nuc_hash",
        "table_assignments",
        "device_certificate",
        "device_family",
        "status",
        "provisioned_at",
    ):
        with pytest.raises(IntegrityError):
            insert_device(database, 1, **{column: None})


def test_there_is_one_authority(database: Database) -> None:
    """Neither the same nor another number makes a second one."""
    statement = (
        "INSERT INTO authority (id, tables, keys_per_table, created_at)"
        " VALUES (:id, 10, 100, '2026-01-01 00:00:00+00:00')"
    )
    execute(database, statement, id=1)
    for number in (1, 2):
        with pytest.raises(IntegrityError):
            execute(database, statement, id=number)


def test_a_key_table_names_the_key_that_wraps_it(database: Database) -> None:
    """A table under an unknown key-encryption key could never be opened."""
    with pytest.raises(IntegrityError):
        execute(
            database,
            "INSERT INTO key_tables (table_id, master_key, kek_id, created_at)"
            " VALUES (0, :key, 7, '2026-01-01 00:00:00+00:00')",
            key=bytes(60),
        )


def test_64_characters_of_any_script_fit(database: Database) -> None:
    """The length of a serial counts characters, on both kinds of database."""
    serials = ["x" * 64, "Ü" * 64, "東" * 64, "😀" * 64]
    for number, serial in enumerate(serials):
        insert_device(database, number, device_serial=serial)
    found = rows_of(database, "SELECT device_serial FROM registered_devices")
    assert {serial for (serial,) in found} == set(serials)


# --- indexes


def plan_of(database: Database, query: str, **parameters: Any) -> str:
    """Return how the database would answer, were its tables too large to read through."""
    with database.read() as connection:
        if database.dialect_name == "sqlite":
            rows = connection.execute(text(f"EXPLAIN QUERY PLAN {query}"), parameters)
            return "\n".join(row.detail for row in rows)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        return "\n".join(connection.execute(text(f"EXPLAIN {query}"), parameters).scalars())


LOOKUPS: list[tuple[str, str, object]] = [
    ("registered_devices", "nuc_hash", b"x"),
    ("registered_devices", "device_serial", "x"),
    ("registered_devices", "public_key_fingerprint", b"x"),
    ("registered_devices", "certificate_serial", "x"),
    ("revoked_certificates", "certificate_serial", "x"),
    ("idempotent_responses", "idempotency_key", b"x"),
    ("key_tables", "table_id", 1),
]


def test_lookups_are_indexed(database: Database) -> None:
    """One row is found without reading all of them."""
    for table, column, value in LOOKUPS:
        plan = plan_of(database, f"SELECT * FROM {table} WHERE {column} = :value", value=value)
        if database.dialect_name == "sqlite":
            assert plan.startswith(f"SEARCH {table} USING ")
        else:
            assert "Index Cond" in plan
            assert column in plan.partition("Index Cond")[2]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT validation_result, count(*) FROM validation_history"
        " WHERE validated_at >= :since GROUP BY validation_result",
        "SELECT device_serial, count(*) FROM validation_history WHERE validated_at >= :since"
        " AND validation_result = 'PASS' GROUP BY device_serial ORDER BY 2 DESC LIMIT 10",
        "DELETE FROM idempotent_responses WHERE created_at < :since",
        "SELECT count(*) FROM registered_devices WHERE provisioned_at >= :since",
    ],
    ids=["success rate", "most active devices", "forgetting answers", "new devices"],
)
def test_questions_about_a_day_read_a_day(database: Database, query: str) -> None:
    """What operators ask about 24 hours does not read years."""
    plan = plan_of(database, query, since="2026-01-01 00:00:00+00:00")
    if database.dialect_name == "sqlite":
        assert "SEARCH" in plan
        assert "SCAN" not in plan
    assert "_at_idx" in plan


def test_the_program_s_own_lookup_by_nuc_hash_is_indexed(database: Database) -> None:
    """The lookup of a batch of NUC hashes, as the program phrases it, uses the unique index."""
    condition = "= ANY(:hashes)" if database.dialect_name == "postgresql" else "IN (:hashes)"
    hashes = [b"x", b"y"] if database.dialect_name == "postgresql" else b"x"
    plan = plan_of(
        database,
        f"SELECT device_serial FROM registered_devices WHERE nuc_hash {condition}",
        hashes=hashes,
    )
    assert "nuc_hash" in plan
    assert "Seq Scan" not in plan
    assert "SCAN" not in plan


# --- the queries that operators run


def test_the_queries_that_operators_run(database: Database) -> None:
    """Success rate, most active devices and validations per hour come out right."""
    times = [NOW + timedelta(minutes=20 * step) for step in range(6)]
    with database.write() as transaction:
        append_rows(
            transaction,
            [
                AuditRow(
                    encrypted_nuc_hash=bytes(48),
                    table_id=1,
                    key_index=1,
                    validation_result=reason.verdict.value,
                    reason=reason.value,
                    device_serial=serial,
                    validated_at=time,
                    request_ip=None,
                )
                for time, reason, serial in zip(
                    times,
                    [Reason.GENUINE] * 4 + [Reason.NOT_OPENED] * 2,
                    ["a", "b", "b", "b", None, None],
                    strict=True,
                )
            ],
        )
    assert rows_of(
        database,
        "SELECT validation_result, count(*) FROM validation_history GROUP BY validation_result"
        " ORDER BY validation_result",
    ) == [("FAIL", 2), ("PASS", 4)]
    assert rows_of(
        database,
        "SELECT device_serial, count(*) FROM validation_history"
        " WHERE validation_result = 'PASS' GROUP BY device_serial ORDER BY count(*) DESC",
    ) == [("b", 3), ("a", 1)]
    hour = (
        "strftime('%H', validated_at)"
        if database.dialect_name == "sqlite"
        else "to_char(validated_at AT TIME ZONE 'UTC', 'HH24')"
    )
    assert rows_of(
        database, f"SELECT {hour}, count(*) FROM validation_history GROUP BY 1 ORDER BY 1"
    ) == [("01", 2), ("02", 3), ("03", 1)]


# --- times


def test_a_time_comes_back_in_utc(database: Database) -> None:
    """Threat 25: the same moment to the microsecond, whatever zone it was told in."""
    for time in (
        NOW,
        NOW.replace(microsecond=0),
        NOW.astimezone(timezone(timedelta(hours=5, minutes=45))),
        NOW.astimezone(timezone(timedelta(hours=-11))),
        datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ):
        with database.write() as transaction:
            transaction.execute(delete(authority))
            transaction.execute(
                insert(authority).values(id=1, tables=10, keys_per_table=10, created_at=time)
            )
        with database.read() as connection:
            found = connection.execute(select(authority.c.created_at)).scalar_one()
        assert found == time
        assert found.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_never_arrives(database: Database) -> None:
    """Threat 25: a naive time is a mistake of ours, and stops before the database."""
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(Exception, match="zone"), database.write() as transaction:
        transaction.execute(
            insert(authority).values(id=1, tables=10, keys_per_table=10, created_at=naive)
        )
    assert rows_of(database, "SELECT * FROM authority") == []


def test_times_are_ordered_as_times(database: Database) -> None:
    """Also on SQLite, where they are text, and also where one has no fraction of a second."""
    times = [NOW.replace(microsecond=0) + timedelta(microseconds=step) for step in (0, 1, 10, 999)]
    times += [time.astimezone(timezone(timedelta(hours=9))) + timedelta(hours=1) for time in times]
    with database.write() as transaction:
        transaction.execute(
            insert(revoked_certificates),
            [
                {
                    "certificate_serial": f"{number}",
                    "device_serial": "x",
                    "revoked_at": time,
                    "revocation_reason": "unspecified",
                }
                for number, time in reversed(list(enumerate(times)))
            ],
        )
    column = revoked_certificates.c.revoked_at
    with database.read() as connection:
        assert list(connection.execute(select(column).order_by(column)).scalars()) == times
        later = select(column).where(column > times[3]).order_by(column)
        assert list(connection.execute(later).scalars()) == times[4:]


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 1),  # noqa: DTZ001  the strategy adds the zone
        timezones=st.timezones() | st.just(UTC),
    ),
    st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_text_in_sqlite_orders_like_time(one: datetime, other: datetime) -> None:
    """Threat 25: for any two times, the order of their texts is their own."""
    kind, dialect = UtcDateTime(), sqlite.dialect()
    try:
        moments = [time.astimezone(UTC) for time in (one, other)]
    except OverflowError:  # a zone that shifts the year 9999 into 10000
        return
    texts = [kind.process_bind_param(time, dialect) for time in (one, other)]
    assert (texts[0] < texts[1]) == (moments[0] < moments[1])
    assert [kind.process_result_value(text, dialect) for text in texts] == moments
