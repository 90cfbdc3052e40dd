"""What is counted of each key table: all of it, once, whoever counts and however often."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.key_tables import usage, usage_store
from birthmark_sma.authority.key_tables.usage import KeyTableUsage
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.engine import Database, open_database
from tests.support.audit_rows import AuditWriter
from tests.support.authorities import execute, new_camera, rows_of

NOW = datetime.now(UTC).replace(second=30, microsecond=0)


def append(database: Database, at: datetime, *table_ids: int, result: str = "PASS") -> None:
    """Write validations that named these tables."""
    reason = "genuine" if result == "PASS" else "not_opened"
    serial = "device" if result == "PASS" else None
    rows = [AuditRow(b"", each, 1, result, reason, serial, at, None) for each in table_ids]
    with database.write() as transaction:
        AuditWriter().write(transaction, rows)


def tokens(database: Database) -> dict[int, tuple[int, int]]:
    """PASS and FAIL of the tables that were named."""
    with database.read() as connection:
        figures = usage_store.list_figures(connection)
    return {each.table_id: (each.passes, each.fails) for each in figures if each.tokens}


def assigned(database: Database) -> dict[int, int]:
    """The devices of the tables that have any."""
    with database.read() as connection:
        figures = usage_store.list_figures(connection)
    return {each.table_id: each.devices for each in figures if each.devices}


def test_every_table_stands_there_before_anything_is_counted(authority: Authority) -> None:
    with authority.database.read() as connection:
        figures = usage_store.list_figures(connection)
    assert [each.table_id for each in figures] == list(range(6))
    assert not any(each.devices or each.tokens for each in figures)


def test_tokens_are_counted_once(authority: Authority) -> None:
    database = authority.database
    counting = KeyTableUsage(database)
    long_ago = NOW - timedelta(minutes=10)
    append(database, long_ago, 1, 1, 2)
    append(database, long_ago, 2, result="FAIL")
    append(database, long_ago, 99_999, result="FAIL")  # a table that there is not
    counting.work(NOW)
    counting.work(NOW)
    assert tokens(database) == {1: (2, 0), 2: (1, 1)}
    append(database, NOW - timedelta(minutes=5), 1)
    counting.work(NOW)
    assert tokens(database) == {1: (3, 0), 2: (1, 1)}


def test_what_may_still_be_on_its_way_is_left_alone(authority: Authority) -> None:
    now = datetime.now(UTC)  # of this very moment: the clock of the database counts as well
    database = authority.database
    counting = KeyTableUsage(database)
    append(database, now - timedelta(seconds=60), 1)
    counting.work(now)
    assert tokens(database) == {}
    append(database, now - timedelta(seconds=60), 1)  # it was on its way
    counting.work(now + timedelta(minutes=2))
    assert tokens(database) == {}, "the database's own clock counts as well"
    append(database, now - timedelta(minutes=9), 3)
    counting.work(now)
    assert tokens(database) == {3: (1, 0)}


@pytest.mark.parametrize("rows", [1, 3, 1_000])
def test_steps_of_any_size_count_the_same(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(usage, "_ROWS", rows)
    monkeypatch.setattr(usage, "_PAUSE_SECONDS", 0.0)
    for ago in (600, 599, 500, 10, 9, 8, 7):
        append(authority.database, NOW - timedelta(minutes=ago), 1, 2, 2)
    KeyTableUsage(authority.database).work(NOW)
    assert tokens(authority.database) == {1: (7, 0), 2: (14, 0)}


def test_processes_that_count_at_once_count_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_ROWS", 2)
    monkeypatch.setattr(usage, "_PAUSE_SECONDS", 0.0)
    for ago in range(10, 30):
        append(authority.database, NOW - timedelta(minutes=ago), 1, 2)
    new_camera(authority, "camera")
    start = threading.Barrier(4)
    faults: list[Exception] = []

    def count() -> None:
        database = open_database(authority.settings.resolved_database_url)
        start.wait(30)
        try:
            for _ in range(30):
                KeyTableUsage(database).work(NOW)
        except Exception as fault:
            faults.append(fault)
        finally:
            database.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert tokens(authority.database) == {1: (20, 0), 2: (20, 0)}
    assert sum(assigned(authority.database).values()) == 3


def test_devices_are_counted_by_the_register(authority: Authority) -> None:
    database = authority.database
    counting = KeyTableUsage(database)
    counting.work(NOW)
    assert assigned(database) == {}
    for number in range(4):
        new_camera(authority, f"camera-{number}")
    counting.work(NOW)
    expected: dict[int, int] = {}
    with database.read() as connection:
        for table_id, devices in usage_store.count_assignments(connection).items():
            expected[table_id] = devices
    assert assigned(database) == expected
    assert sum(expected.values()) == 12


def test_what_takes_long_is_counted_seldom(authority: Authority) -> None:
    database = authority.database
    counting = KeyTableUsage(database)
    new_camera(authority, "camera-1")
    counting.work(NOW)
    execute(database, "UPDATE key_table_counting SET devices_seconds = 1.0")
    ((counted_at,),) = rows_of(database, "SELECT devices_at FROM key_table_counting")
    new_camera(authority, "camera-2")
    counting.work(NOW + timedelta(seconds=1))
    assert sum(assigned(database).values()) == 3
    assert rows_of(database, "SELECT devices_at FROM key_table_counting") == [(counted_at,)]
    execute(database, "UPDATE key_table_counting SET devices_seconds = 0.0")
    counting.work(datetime.now(UTC))
    assert sum(assigned(database).values()) == 6
