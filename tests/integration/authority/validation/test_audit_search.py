"""Search the audit trail: every row that is wanted once, newest first, by bounded steps."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.validation import audit_search
from birthmark_sma.authority.validation.audit_search import AuditEntry, AuditFilter, search
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.engine import Database
from tests.support.audit_rows import AuditWriter

BEGIN = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
REASONS = (Reason.GENUINE, Reason.GENUINE, Reason.NOT_OPENED, Reason.DEVICE_SUSPENDED)


def fill(database: Database, batches: int, per_batch: int) -> list[AuditRow]:
    """Write batches half a minute apart, as validation would; return all rows, newest first."""
    trail = AuditWriter()
    rows: list[AuditRow] = []
    for batch in range(batches):
        at = BEGIN + timedelta(seconds=30 * batch)
        new = [_row(at, batch * per_batch + number) for number in range(per_batch)]
        with database.write() as transaction:
            trail.write(transaction, new)
        rows += new
    return rows[::-1]


def _row(at: datetime, number: int) -> AuditRow:
    reason = REASONS[number % 4]
    return AuditRow(
        encrypted_nuc_hash=number.to_bytes(48, "big"),
        table_id=number % 5,
        key_index=number,
        validation_result=reason.verdict.value,
        reason=reason.value,
        device_serial=f"device-{number % 7}",
        validated_at=at,
        request_ip="192.0.2.1",
        caller="a key" if number % 3 == 0 else None,
        repeat=Repeat.REPLAYED.value if number % 11 == 0 else None,
    )


def everything(database: Database, wanted: AuditFilter, limit: int) -> list[AuditEntry]:
    """Go from page to page until nothing is left."""
    place = None
    found: list[AuditEntry] = []
    for _ in range(1_000):
        with database.read() as connection:
            page = search(connection, wanted, limit=limit, before=place, seconds=0.0)
        assert len(page.rows) <= limit
        found += page.rows
        if page.older is None:
            return found
        place = page.older
    raise AssertionError("there is no end")


FILTERS: Sequence[AuditFilter] = (
    AuditFilter(),
    AuditFilter(result=Verdict.PASS),
    AuditFilter(result=Verdict.FAIL),
    AuditFilter(reason=Reason.DEVICE_SUSPENDED),
    AuditFilter(result=Verdict.PASS, reason=Reason.NOT_OPENED),
    AuditFilter(reason=Reason.UNKNOWN_TABLE),
    AuditFilter(repeat=Repeat.REPLAYED),
    AuditFilter(repeat=Repeat.DUAL_SUBMISSION),
    AuditFilter(device_serial="device-3"),
    AuditFilter(table_id=4, result=Verdict.FAIL),
    AuditFilter(caller="a key"),
    AuditFilter(caller="192.0.2.1"),
    AuditFilter(since=BEGIN + timedelta(seconds=75), until=BEGIN + timedelta(seconds=180)),
    AuditFilter(device_serial="device-3", since=BEGIN + timedelta(seconds=75)),
    AuditFilter(device_serial="device-3", until=BEGIN + timedelta(seconds=90)),
    AuditFilter(until=BEGIN),
)


def is_wanted(row: AuditRow, wanted: AuditFilter) -> bool:
    """The filter in plain words."""
    caller = row.caller if row.caller is not None else row.request_ip
    return (
        wanted.result in {None, row.validation_result}
        and wanted.reason in {None, row.reason}
        and wanted.repeat in {None, row.repeat}
        and wanted.device_serial in {None, row.device_serial}
        and wanted.table_id in {None, row.table_id}
        and wanted.caller in {None, caller}
        and (wanted.since is None or row.validated_at >= wanted.since)
        and (wanted.until is None or row.validated_at < wanted.until)
    )


@pytest.mark.parametrize("rows", [50_000, 20, 1])
def test_every_filter_finds_its_rows_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Whatever the sizes of pages and of the stretches that are looked at."""
    monkeypatch.setattr(audit_search, "_ROWS", rows)
    written = fill(database, batches=9, per_batch=13)
    for wanted in FILTERS:
        expected = [row.key_index for row in written if is_wanted(row, wanted)]
        for limit in (1, 7, 1_000):
            found = everything(database, wanted, limit)
            assert [entry.key_index for entry in found] == expected, (wanted, limit)


def test_a_page_says_how_far_back_it_has_looked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_search, "_ROWS", 1)
    fill(database, batches=9, per_batch=13)
    with database.read() as connection:
        page = search(connection, AuditFilter(device_serial="none"), limit=5, seconds=0.0)
        assert page.rows == []
        assert page.looked_back_to == BEGIN + timedelta(minutes=4)
        whole = search(connection, AuditFilter(device_serial="none"), limit=5, seconds=60.0)
        assert whole == ([], None, None)


def test_counters_lead_past_what_is_not_wanted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason that was given once, long ago, is found at once."""
    monkeypatch.setattr(audit_search, "_ROWS", 1)
    rare = _row(BEGIN - timedelta(days=30), 0)._replace(
        reason=Reason.UNKNOWN_DEVICE.value, validation_result="FAIL"
    )
    with database.write() as transaction:
        AuditWriter().write(transaction, [rare])
    fill(database, batches=9, per_batch=13)
    with database.read() as connection:
        page = search(connection, AuditFilter(reason=Reason.UNKNOWN_DEVICE), limit=5, seconds=0.0)
    assert [row.validated_at for row in page.rows] == [rare.validated_at]
    assert page.older is None
