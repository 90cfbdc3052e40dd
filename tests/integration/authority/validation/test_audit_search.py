"""Search the audit trail: every row that is wanted once, newest first, by bounded steps."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.validation import audit_search, replay_ledger
from birthmark_sma.authority.validation.audit_search import (
    AuditEntry,
    AuditFilter,
    Cursor,
    search,
    search_whole,
)
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.authority.validation.store_postgresql import prefer_bitmap_scans
from birthmark_sma.authority.validation.validation_details import find_request, find_validation
from birthmark_sma.errors import UnknownValidationError
from birthmark_sma.protocol.replay import Repeat, SeenToken
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.engine import Database
from tests.support.audit_rows import AuditWriter

BEGIN = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
BEGIN_CURSOR = Cursor(BEGIN, 7)
END_CURSOR = Cursor(BEGIN + timedelta(days=1), 0)
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
        request_id=f"request-{number // 5}" if number % 10 else None,
        token_digest=digest_of(number % 17),
    )


def digest_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


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
    AuditFilter(request_id="request-2"),
    AuditFilter(request_id="request-2", result=Verdict.FAIL),
    AuditFilter(request_id="request-2", until=BEGIN),
    AuditFilter(request_id="request-7", since=BEGIN, until=BEGIN + timedelta(seconds=90)),
    AuditFilter(request_id="request"),
    AuditFilter(token_digest=digest_of(3)),
    AuditFilter(token_digest=digest_of(3), request_id="request-4"),
    AuditFilter(token_digest=digest_of(99)),
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
        and wanted.request_id in {None, row.request_id}
        and wanted.token_digest in {None, row.token_digest}
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


def test_a_search_of_the_whole_log_reads_in_parts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a transaction of its own, and together they give one page."""
    monkeypatch.setattr(audit_search, "_ROWS", 1)
    monkeypatch.setattr(audit_search, "_SECONDS_A_PART", 0.0)
    written = fill(database, batches=9, per_batch=13)
    for wanted in FILTERS:
        expected = [row.key_index for row in written if is_wanted(row, wanted)]
        for limit in (1, 3, 1_000):
            page = search_whole(database, wanted, limit=limit)
            assert [row.key_index for row in page.rows] == expected[:limit], (wanted, limit)
            assert page.looked_back_to is None
            rest = (
                []
                if page.older is None
                else [
                    row.key_index
                    for row in search_whole(database, wanted, limit=1_000, before=page.older).rows
                ]
            )
            assert rest == expected[limit:], (wanted, limit)


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


MANY_ROWS = """
INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index, validation_result, reason,
    validated_at, request_id)
SELECT '\\x00', 1, 1, 'PASS', 'genuine',
    timestamptz '2026-05-01 12:00+00' + n * interval '1 second', md5(n::text)
FROM generate_series(1, 20000) AS n
"""


def test_requests_that_share_an_id_are_all_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are few or too many for the index, on several days, page by page."""
    trail, shared = AuditWriter(), []
    for day in range(3):
        rows = [
            _row(BEGIN - timedelta(days=day), number)._replace(
                request_id="shared" if number % 2 else "other"
            )
            for number in range(40)
        ]
        with database.write() as transaction:
            trail.write(transaction, rows)
        shared += [row for row in rows[::-1] if row.request_id == "shared"]
    expected = [(row.validated_at, row.key_index) for row in shared]
    for most in (5_000, 20, 19, 1):
        monkeypatch.setattr(audit_search, "_MOST_OF_A_REQUEST", most)
        for limit in (3, 20, 1_000):
            found = everything(database, AuditFilter(request_id="shared"), limit)
            assert [(row.validated_at, row.key_index) for row in found] == expected, (most, limit)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_index_of_request_ids_is_used(database: Database) -> None:
    """The planner would rather read the whole partition."""
    with database.write() as transaction:
        transaction.exec_driver_sql(MANY_ROWS)
    wanted, stretch = AuditFilter(request_id="x"), audit_search._Stretch(BEGIN, END_CURSOR)
    query = audit_search._matching(wanted, stretch).limit(5)
    text = query.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
    with database.read() as connection:
        connection.exec_driver_sql("ANALYZE validation_history")
        with prefer_bitmap_scans(connection):
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {text}").scalars())
        after = connection.exec_driver_sql("SHOW enable_indexscan").scalar()
    assert "request_id" in plan.split("Bitmap Index Scan")[1], plan
    assert after == "on"


def test_the_ledger_says_when_a_token_was_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a token of long ago is found although the search may read one window only."""
    monkeypatch.setattr(audit_search, "_ROWS", 1)
    long_ago = BEGIN - timedelta(days=30)
    old = _row(long_ago, 0)._replace(token_digest=bytes(15) + b"x")
    again = old._replace(validated_at=long_ago + timedelta(minutes=5), repeat="replayed")
    store = make_store(database)
    trail = AuditWriter()
    for row in (old, again):
        assert row.token_digest is not None
        with database.write() as transaction:
            replay_ledger.note(
                store, transaction, [SeenToken(row.token_digest, "a")], row.validated_at
            )
            trail.write(transaction, [row])
    fill(database, batches=9, per_batch=13)
    with database.read() as connection:
        wanted = AuditFilter(token_digest=old.token_digest)
        page = search(connection, wanted, limit=5, seconds=1e-9)
        assert [row.validated_at for row in page.rows] == [again.validated_at]
        assert page.older is not None
        page = search(connection, wanted, limit=5, seconds=1e-9, before=page.older)
        assert [row.validated_at for row in page.rows] == [long_ago]
        assert page.older is None
        late = AuditFilter(token_digest=old.token_digest, since=BEGIN)
        assert search(connection, late, limit=5) == ([], None, None)


def test_a_cursor_survives_as_text() -> None:
    """In URLs and on command lines."""
    assert Cursor.parse(str(BEGIN_CURSOR)) == BEGIN_CURSOR
    for text in ("", "_", "2026-05-01T12:00:00_1", f"{BEGIN_CURSOR}x", "9999-12-31T23:59-23:59_1"):
        with pytest.raises(ValueError, match="no place"):
            Cursor.parse(text)
    for number in (-1, 2**63):
        with pytest.raises(ValueError, match="no place"):
            Cursor.parse(f"2026-05-01T12:00:00+00:00_{number}")


def test_details_tell_the_story_of_a_token(database: Database) -> None:
    """The row, its reason in words, and who submitted the token when."""
    rows = fill(database, batches=1, per_batch=12)
    digest = digest_of(3)
    store = make_store(database)
    with database.write() as transaction:
        for caller in ("key:one", "key:two", "key:two"):
            replay_ledger.note(store, transaction, [SeenToken(digest, caller)], BEGIN)
    with database.read() as connection:
        found = find_request(database, "request-0")
        assert [each.entry.key_index for each in found] == [4, 3, 2, 1]
        story = found[1].story
        assert story is not None
        assert (story.first_caller, story.first_seen_at) == ("key:one", BEGIN)
        assert story.resubmissions == [("key:two", 2, BEGIN)]
        assert found[0].story is None
        for each in found:
            assert find_validation(connection, each.entry.cursor) == each
        with pytest.raises(UnknownValidationError, match="has the request id request-9"):
            find_request(database, "request-9")
        with pytest.raises(UnknownValidationError):
            find_validation(connection, Cursor(BEGIN, 2**62))
    assert rows[0].request_id == "request-2"
