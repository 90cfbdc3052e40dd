"""The thread that tends the audit trail: at once, again after an outage, and gone when told."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background.audit_upkeep import AuditUpkeep
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.outages.commit_marks import CommitMark, write_mark
from birthmark_sma.storage.partitions import DAYS_AHEAD, list_partitions
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import execute, rows_of
from tests.support.databases.postgres import Postgres
from tests.support.days import current_time
from tests.support.programs.running import wait_until
from tests.support.programs.wrong_clock import trust_the_machine


def note(database: Database, at: datetime) -> None:
    """Write a row and its counts."""
    with database.write() as transaction:
        AuditWriter().write(transaction, judged(at, [(Reason.GENUINE, "device")]))


def drop_days(database: Database) -> None:
    """Take every partition of a day away, as if nobody had made any for a week."""
    with database.read() as connection:
        days = [each.name for each in list_partitions(connection) if each.ends is not None]
    for name in days:
        execute(database, f"DROP TABLE {name}")


def days_of(database: Database) -> int:
    """Return how many partitions of a day there are."""
    with database.read() as connection:
        return sum(each.ends is not None for each in list_partitions(connection))


def count_of(database: Database) -> int:
    """Return how many rows the audit trail has."""
    number: int = rows_of(database, "SELECT count(*) FROM validation_history")[0][0]
    return number


def test_it_begins_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions ahead and retention, without being waited for."""
    trust_the_machine(monkeypatch)
    if database.dialect_name == "postgresql":
        drop_days(database)
    for days in (0, 1, 2, 400):
        note(database, current_time() - timedelta(days=days))
    upkeep = AuditUpkeep(database, retention_days=1, keks=None)
    upkeep.start()
    wait_until(lambda: count_of(database) == 2, 20)
    upkeep.close()
    expected = 0 if database.dialect_name == "sqlite" else DAYS_AHEAD + 1
    assert days_of(database) == expected


def test_marks_of_writers_that_are_gone_are_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day by the database's clock, whether or not the audit trail has a retention."""
    trust_the_machine(monkeypatch)
    now = database.clock.now()
    with database.write() as transaction:
        for hours, name in ((25, "gone"), (23, "idle"), (0, "busy")):
            write_mark(transaction, CommitMark(name, 7), now - timedelta(hours=hours))
    AuditUpkeep(database, retention_days=None, keks=None).work(current_time())
    names = rows_of(database, "SELECT writer, sequence FROM writer_commits ORDER BY writer")
    assert names == [("busy", 7), ("idle", 7)]


def test_without_a_retention_everything_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditUpkeep, "every_seconds", 0.01)
    note(database, current_time() - timedelta(days=4000))
    rounds = counted_rounds(monkeypatch)
    upkeep = AuditUpkeep(database, retention_days=None, keks=None)
    upkeep.start()
    wait_until(lambda: rounds() > 3, 20)
    upkeep.close()
    assert count_of(database) == 1


def counted_rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that says how often the trail was tended."""
    done = []
    make_ahead = partitions.create_future_partitions

    def count(transaction: Connection, today: date) -> list[str]:
        done.append(1)
        return make_ahead(transaction, today)

    monkeypatch.setattr(partitions, "create_future_partitions", count)
    return lambda: len(done)


def test_closing_does_not_wait(database: Database) -> None:
    """Whether it was begun or not, and though its next round is an hour away."""
    AuditUpkeep(database, None, None).close()
    upkeep = AuditUpkeep(database, 1, None)
    upkeep.start()
    began = time.monotonic()
    upkeep.close()
    assert time.monotonic() - began < 2
    assert "history-upkeep" not in {thread.name for thread in threading.enumerate()}


def test_only_who_serves_begins_it(authority: Authority) -> None:
    """A single command opens the authority too, and has no time for this."""
    assert "history-upkeep" not in {thread.name for thread in threading.enumerate()}
    authority.start()
    assert "history-upkeep" in {thread.name for thread in threading.enumerate()}


def test_it_survives_an_outage(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Threat 28: it says so in the log, without the URL, and goes on once the database is back."""
    monkeypatch.setattr(BackgroundTask, "again_seconds", 0.1)
    database = open_database(own_postgres.url)
    migrate(database)
    drop_days(database)
    own_postgres.kill()
    upkeep = AuditUpkeep(database, retention_days=1, keks=None)
    with caplog.at_level(logging.WARNING):
        upkeep.start()
        wait_until(lambda: "waits for the database" in caplog.text, 20)
    assert own_postgres.url not in caplog.text
    own_postgres.restart()
    wait_until(lambda: days_of(database) == DAYS_AHEAD + 1, 30)
    upkeep.close()
    database.close()


def test_it_survives_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of its own is logged, and does not end the thread."""
    trust_the_machine(monkeypatch)
    monkeypatch.setattr(BackgroundTask, "again_seconds", 0.01)
    monkeypatch.setattr(AuditUpkeep, "every_seconds", 0.01)
    database = open_database(f"sqlite:///{tmp_path / 'sma.db'}")
    migrate(database)
    note(database, current_time() - timedelta(days=9))
    execute(database, "ALTER TABLE device_activity RENAME TO elsewhere")
    upkeep = AuditUpkeep(database, retention_days=1, keks=None)
    upkeep.start()
    wait_until(lambda: "upkeep failed" in caplog.text or "waits" in caplog.text, 20)
    execute(database, "ALTER TABLE elsewhere RENAME TO device_activity")
    wait_until(lambda: count_of(database) == 0, 20)
    upkeep.close()
    database.close()


def test_a_clock_that_runs_ahead_takes_no_history(postgres_url: str) -> None:
    """Threats 25 and 45: a machine of ten years hence takes nothing from the others."""
    database = open_database(postgres_url)
    migrate(database)
    note(database, current_time())
    upkeep = AuditUpkeep(database, retention_days=1, keks=None)
    upkeep.work(current_time() + timedelta(days=3_650))
    assert rows_of(database, "SELECT count(*) FROM validation_history") == [(1,)]
    upkeep.work(current_time())
    assert rows_of(database, "SELECT count(*) FROM validation_history") == [(1,)]
    database.close()


def test_it_coarsens_old_rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the set days, and it remembers what it need not look at again."""
    trust_the_machine(monkeypatch)
    for days in (5, 0):
        note(database, current_time() - timedelta(days=days))
    upkeep = AuditUpkeep(database, None, None, privacy_days=2)
    for _ in range(2):
        upkeep.work(current_time())
        coarse = "SELECT count(*) FROM validation_history WHERE time_and_ip_commitment IS NOT NULL"
        assert rows_of(database, coarse)[0][0] == 1
    assert count_of(database) == 2
