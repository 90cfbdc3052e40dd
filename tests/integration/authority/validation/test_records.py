"""The audit trail: whole rows, whatever their time."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.validations import validation_history
from tests.support.audit_rows import AuditWriter
from tests.support.authorities import rows_of

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PASS = AuditRow(b"\x00" + b"\xff" * 47, 3, 7, "PASS", "genuine", "device", NOW, "192.0.2.7")
FAIL = AuditRow(bytes(48), 2**31 - 1, 2**31 - 1, "FAIL", "not_opened", None, NOW, None)


def append(database: Database, *rows: AuditRow) -> None:
    """Write rows."""
    with database.write() as transaction:
        for row in rows:
            AuditWriter().write(transaction, [row])


def test_rows_come_back_as_they_went_in(database: Database) -> None:
    """In the order of writing, with ids that grow, and with the largest numbers of the wire."""
    longest = FAIL._replace(
        request_ip="2001:db8:ffff:ffff:ffff:ffff:255.255.255.255".ljust(45, "0")
    )
    append(database, PASS, FAIL, longest)
    append(database, PASS)
    with database.read() as connection:
        rows = connection.execute(select(validation_history).order_by("id")).all()
    names = AuditRow._fields
    assert [tuple(getattr(row, name) for name in names) for row in rows] == [
        tuple(row) for row in (PASS, FAIL, longest, PASS)
    ]
    ids = [row.id for row in rows]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("days", [-400_000, -1, 0, 1, 8, 1_000_000])
def test_a_row_of_any_day_is_kept(database: Database, days: int) -> None:
    """Whatever a clock says: no partition is missing for good."""
    row = PASS._replace(validated_at=NOW + timedelta(days=days))
    append(database, row)
    found = rows_of(database, "SELECT validated_at FROM validation_history")
    assert len(found) == 1
