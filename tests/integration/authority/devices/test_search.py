"""Searching the register: by an index, however many devices there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event

from birthmark_sma.authority.devices.search import DeviceFilter, search
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import execute
from tests.support.schemas import give_schema


@contextmanager
def told_plans(connection: Connection) -> Iterator[list[str]]:
    """What the database would do for each statement meanwhile, with the same parameters."""
    plans: list[str] = []
    verb = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"

    def note(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        cursor.execute(f"{verb} {statement}", parameters)
        plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield plans
    finally:
        event.remove(connection, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("wanted", "after", "index", "bound"),
    [
        (DeviceFilter(), "b", "registered_devices", "device_serial>?"),
        (DeviceFilter(begins="A"), "ab", "registered_devices_serial_folded_key", "serial_folded>?"),
        (DeviceFilter(begins="b"), "A", "registered_devices_serial_folded_key", "serial_folded>?"),
        (DeviceFilter(family="f"), "b", "registered_devices_family_idx", "device_serial>?"),
        (DeviceFilter(status=DeviceStatus.REVOKED), "b", "registered_devices_status_idx", "status"),
        (
            DeviceFilter(status=DeviceStatus.SUSPENDED),
            None,
            "registered_devices_status_idx",
            "status",
        ),
    ],
)
def test_an_index_leads_there(
    database: Database, wanted: DeviceFilter, after: str | None, index: str, bound: str
) -> None:
    """None of these reads the register from its beginning, nor those before the page."""
    with database.read() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        with told_plans(connection) as plans:
            assert search(connection, wanted, limit=51, after=after) == []
    assert index in plans[0], plans[0]
    if database.dialect_name == "sqlite":
        assert "SCAN" not in plans[0]
        assert bound in plans[0], plans[0]
        assert "TEMP B-TREE" not in plans[0], "they come in the order of their serials"
    else:
        assert "Index Cond" in plans[0], plans[0]


def test_a_device_is_found_by_an_earlier_certificate(postgres_url: str) -> None:
    """Threat 44: by indexes alone, among many devices."""
    give_schema(postgres_url)
    database = open_database(postgres_url)
    execute(
        database,
        "INSERT INTO registered_devices (device_serial, serial_folded, nuc_hash,"
        " table_assignments, device_certificate, certificate_serial, device_public_key,"
        " public_key_fingerprint, device_family, status, provisioning_id, provisioned_at)"
        " SELECT 'camera-' || n, 'camera-' || n, n::text::bytea, '{1,2,3}', '', 'c' || n, '',"
        " n::text::bytea, 'Test', 'active', 'PROV-' || n, now()"
        " FROM generate_series(1, 20000) AS n",
    )
    execute(
        database,
        "INSERT INTO earlier_certificates SELECT 'e' || n, 'camera-' || n, 'intermediate',"
        " n::text::bytea, now(), now(), now(), 'olga' FROM generate_series(1, 20000) AS n",
    )
    execute(database, "ANALYZE")
    with database.read() as connection, told_plans(connection) as plans:
        for begins, device in (("E77", 77), ("C78", 78), ("PROV-79", 79)):
            found = search(connection, DeviceFilter(begins=begins), limit=51)
            assert [each.device_serial for each in found] == [f"camera-{device}"]
    assert not [plan for plan in plans if "Seq Scan" in plan], plans
    database.close()
