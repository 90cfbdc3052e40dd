"""Partitions on PostgreSQL: made ahead, never in anybody's way, dropped whole."""

import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.partitions import (
    DAYS_AHEAD,
    UNFORESEEN,
    Partition,
    create_future_partitions,
    drop,
    list_partitions,
)
from tests.support.audit_rows import append_rows
from tests.support.authorities import execute, rows_of
from tests.support.days import DAY, today


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL: what this module is for."""
    database = open_database(postgres_url)
    migrate(database)
    yield database
    database.close()


def note(database: Database, *times: datetime) -> None:
    """Write rows of these times into the audit trail."""
    row = AuditRow(bytes(48), 1, 1, "PASS", "genuine", "device", today(), None)
    with database.write() as transaction:
        append_rows(transaction, [row._replace(validated_at=at) for at in times])


def make(database: Database, day: datetime | None = None) -> list[str]:
    """Make what is missing on a day, by default on this one."""
    with database.write() as transaction:
        return create_future_partitions(transaction, (day or today()).date())


def listed(database: Database) -> list[Partition]:
    with database.read() as connection:
        return list_partitions(connection)


def name_of(day: date) -> str:
    return f"validation_history_{day:%Y%m%d}"


def count(database: Database, name: str) -> int:
    number: int = rows_of(database, f"SELECT count(*) FROM {name}")[0][0]
    return number


def test_a_new_database_has_a_week_of_them(database: Database) -> None:
    """Today's and those of the days ahead, without a gap, and the default."""
    *days, last = listed(database)
    assert [each.name for each in days] == [
        name_of(today() + ahead * DAY) for ahead in range(DAYS_AHEAD + 1)
    ]
    assert [(each.begins, each.ends) for each in days] == [
        (today() + ahead * DAY, today() + (ahead + 1) * DAY) for ahead in range(DAYS_AHEAD + 1)
    ]
    assert last[:3] == (UNFORESEEN, None, None)
    assert all(each.size > 0 and each.rows == 0 for each in (*days, last))


def test_making_them_again_makes_nothing(database: Database) -> None:
    """And tomorrow one more."""
    assert make(database) == []
    assert make(database, today() + DAY) == [name_of(today() + (DAYS_AHEAD + 1) * DAY)]


def test_bounds_are_read_in_any_zone(database: Database) -> None:
    """Threat 25: whatever zone a session has."""
    expected = [each[:3] for each in listed(database)]
    with database.write() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'Asia/Kolkata'")
        assert [each[:3] for each in list_partitions(connection)] == expected
        assert create_future_partitions(connection, (today() + DAY).date())
    assert listed(database)[DAYS_AHEAD + 1].ends == today() + (DAYS_AHEAD + 2) * DAY


def test_a_row_without_a_partition_is_kept_and_moved(database: Database) -> None:
    """Rows of a day that nobody foresaw lie in the default, until their day gets its partition."""
    far = today() + 9 * DAY
    times = [far, far + DAY - timedelta(microseconds=1), far + DAY, today() - DAY, today()]
    note(database, *times)
    assert count(database, UNFORESEEN) == 4
    before = rows_of(database, "SELECT * FROM validation_history ORDER BY id")
    make(database, today() + 2 * DAY)
    assert count(database, name_of(far)) == 2
    assert count(database, UNFORESEEN) == 2
    assert rows_of(database, "SELECT * FROM validation_history ORDER BY id") == before


def test_new_partitions_have_the_indexes(database: Database) -> None:
    """Whether they were empty or not."""
    note(database, today() + 8 * DAY)
    make(database, today() + DAY)
    indexed = rows_of(
        database,
        "SELECT split_part(indexdef, '(', 2), count(*) FROM pg_indexes"
        " WHERE tablename LIKE 'validation_history_2%' GROUP BY 1 ORDER BY 1",
    )
    assert indexed == [
        ("request_id text_bloom_ops ", DAYS_AHEAD + 2),
        ("validated_at)", DAYS_AHEAD + 2),
    ]


def test_rows_that_come_while_rows_move(database: Database) -> None:
    """Nothing is lost and nobody fails where a partition is made in the middle of its day."""
    far = today() + 9 * DAY
    note(database, *[far] * 2_000)
    written, stop = [2_000], threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        try:
            while not stop.is_set():
                note(database, far)
                written[0] += 1
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    while written[0] < 2_010:
        time.sleep(0.01)
    make(database, far)
    goal = written[0] + 10
    while written[0] < goal and not errors:
        time.sleep(0.01)
    stop.set()
    writer.join(30)
    assert errors == []
    assert count(database, name_of(far)) == written[0]
    assert count(database, UNFORESEEN) == 0


def test_two_programs_make_them_at_once(database: Database, postgres_url: str) -> None:
    """They take turns: every partition is made once, and nobody fails."""
    made: list[str] = []
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def run() -> None:
        mine = open_database(postgres_url)
        try:
            start.wait(30)
            made.extend(make(mine, today() + 20 * DAY))
        except Exception as error:
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(made) == len(set(made)) == DAYS_AHEAD + 1


def test_making_them_holds_up_nobody_behind_a_long_query(
    database: Database, postgres_url: str
) -> None:
    """It gives up soon, and rows are written all the while."""

    def refuse() -> None:
        with pytest.raises(DatabaseUnavailableError):
            make(database, today() + DAY)

    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM validation_history")  # and holds what it read
        making = threading.Thread(target=refuse)
        making.start()
        longest = slowest_note_while(database, making)
    assert longest < 1
    assert make(database, today() + DAY) != []


def test_dropping_holds_up_nobody_behind_a_long_query(
    database: Database, postgres_url: str
) -> None:
    """It gives up soon, and says why."""
    name = name_of(today() + 3 * DAY)

    def refuse() -> None:
        with pytest.raises(DatabaseUnavailableError) as refused, database.write() as transaction:
            drop(transaction, name)
        assert "long query" in refused.value.advice

    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM validation_history")
        dropping = threading.Thread(target=refuse)
        dropping.start()
        longest = slowest_note_while(database, dropping)
    assert longest < 1
    with database.write() as transaction:
        drop(transaction, name)
        drop(transaction, name)  # another program was faster
    assert name not in {each.name for each in listed(database)}


def slowest_note_while(database: Database, thread: threading.Thread) -> float:
    """Write rows until a thread ends; return how long the slowest took, in seconds."""
    longest = 0.0
    while True:
        began = time.monotonic()
        note(database, today())
        longest = max(longest, time.monotonic() - began)
        if not thread.is_alive():
            return longest
        time.sleep(0.01)


def test_a_partition_without_a_beginning_covers_the_past(database: Database) -> None:
    """As the one that an upgrade leaves."""
    execute(
        database,
        "CREATE TABLE validation_history_before PARTITION OF validation_history"
        f" FOR VALUES FROM (MINVALUE) TO ('{today()}')",
    )
    first = listed(database)[0]
    assert first[:3] == ("validation_history_before", None, today())
    assert first.covers(today() - DAY, today())
    assert not first.covers(today() - DAY, today() + DAY)
    assert make(database, today() - 3 * DAY) == []


def test_sqlite_has_none(tmp_path: Path) -> None:
    """There is nothing to list or to make there."""
    database = open_database(f"sqlite:///{tmp_path / 'sma.db'}")
    migrate(database)
    assert listed(database) == []
    assert make(database, today() + 100 * DAY) == []
    assert partitions.UNFORESEEN not in {
        name for (name,) in rows_of(database, "SELECT name FROM sqlite_master")
    }
    database.close()


def test_a_partition_that_an_operator_named(database: Database) -> None:
    """Whatever its name is, retention can drop it."""
    name = 'The Year 2020; 100% "kept"'
    quoted = name.replace('"', '""').replace("%", "%%")
    with database.write() as transaction:
        transaction.exec_driver_sql(
            f'CREATE TABLE "{quoted}" PARTITION OF validation_history'
            " FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2021-01-01 00:00+00')"
        )
    assert name in [each.name for each in listed(database)]
    with database.write() as transaction:
        drop(transaction, name)
    assert name not in [each.name for each in listed(database)]
