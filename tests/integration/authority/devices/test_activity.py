"""The activity of devices, and the short list of the busiest."""

import random
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import pytest

from birthmark_sma.authority.devices import activity as device_activity
from birthmark_sma.authority.devices.activity import LISTED, most_active
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import rows_of

DAY = date(2026, 3, 29)


def record(
    database: Database, writer: AuditWriter, passes: Mapping[str, int], day: date = DAY
) -> None:
    """Count passes in a transaction of their own."""
    with database.write() as transaction:
        at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        names = Counter(passes).elements()
        writer.write(transaction, judged(at, [(Reason.GENUINE, name) for name in names]))


def ranked(database: Database, *days: date, limit: int = 10) -> list[tuple[str, int]]:
    """Return the busiest devices."""
    with database.read() as connection:
        return most_active(connection, days or (DAY,), limit=limit)


def test_nothing_counted(database: Database) -> None:
    assert ranked(database) == []


def test_ranks_go_by_passes_then_by_serial(database: Database) -> None:
    writer = AuditWriter()
    record(database, writer, {"b": 2, "a": 2, "c": 1})
    record(database, writer, {"c": 2})
    assert ranked(database) == [("c", 3), ("a", 2), ("b", 2)]
    assert ranked(database, limit=2) == [("c", 3), ("a", 2)]


def test_days_are_counted_apart(database: Database) -> None:
    """And added where several are asked for."""
    writer = AuditWriter()
    record(database, writer, {"a": 2, "b": 1})
    record(database, writer, {"b": 4}, DAY + timedelta(days=1))
    assert ranked(database) == [("a", 2), ("b", 1)]
    assert ranked(database, DAY + timedelta(days=1)) == [("b", 4)]
    assert ranked(database, DAY, DAY + timedelta(days=1)) == [("b", 5), ("a", 2)]


def test_a_latecomer_rises_to_the_top(database: Database) -> None:
    """A device that nobody had on the list enters it as soon as it has earned that."""
    writer = AuditWriter()
    for _ in range(3):
        record(database, writer, {f"device-{number:02}": 2 for number in range(LISTED + 15)})
    for _ in range(7):
        record(database, writer, {"late": 1})
    assert ranked(database, limit=1) == [("late", 7)]


def test_the_list_stays_short(database: Database) -> None:
    """Whoever comes and goes: it never grows far beyond what is asked for, and stays right."""
    chance = random.Random(7)
    writers = [AuditWriter(), AuditWriter()]
    passes: Counter[str] = Counter()
    longest = 0
    for step in range(150):
        names = chance.choices(range(400), weights=range(1, 401), k=40)
        batch = Counter(f"device-{number}" for number in names)
        passes += batch
        record(database, writers[step % 2], batch)
        longest = max(longest, rows_of(database, "SELECT count(*) FROM busiest_devices")[0][0])
    assert longest <= 4 * LISTED
    assert [n for _, n in ranked(database)] == [n for _, n in passes.most_common(10)]
    assert dict(ranked(database)).items() <= passes.items()


def test_an_old_list_is_read_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs put on the list is seen after a minute, and nothing else is needed."""
    one, other = AuditWriter(), AuditWriter()
    crowd = {f"device-{number:02}": 1 for number in range(LISTED)}
    for _ in range(2):
        record(database, one, crowd)
    for _ in range(2):
        record(database, other, dict.fromkeys(crowd, 50))
    monkeypatch.setattr(device_activity, "_READ_AGAIN_SECONDS", 0.0)
    record(database, one, {**crowd, "newcomer": 9})
    assert ("newcomer",) not in rows_of(database, "SELECT device_serial FROM busiest_devices")


def test_many_at_once_never_wait_in_a_circle(database_url: str) -> None:
    """Threads with the same devices in every order, listing and striking off: nobody fails."""
    database = open_database(database_url)
    migrate(database)
    errors: list[Exception] = []
    counted: Counter[str] = Counter()
    lock = threading.Lock()

    def run(seed: int) -> None:
        chance, writer = random.Random(seed), AuditWriter()
        try:
            for _ in range(40):
                batch = Counter(f"device-{chance.randrange(120)}" for _ in range(60))
                record(database, writer, batch)
                with lock:
                    counted.update(batch)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert dict(rows_of(database, "SELECT device_serial, passes FROM device_activity")) == counted
    assert dict(ranked(database)).items() <= counted.items()
    database.close()
