"""Counters of verdicts: in the transaction of their rows, by hour, by anybody at once."""

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

from birthmark_sma.authority.background.retention import prune
from birthmark_sma.authority.validation.audit_counters import (
    HourCounts,
    count_by_step,
    count_ever,
    count_repeats,
    floor_to_hour,
    hours_until,
)
from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import TimeStep, database_time
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import rows_of

NOW = datetime(2026, 3, 29, 23, 30, 59, 999_999, tzinfo=UTC)


def record(
    database: Database, at: datetime, *reasons: Reason, trail: AuditWriter | None = None
) -> None:
    """Count reasons, of a device where it is known."""
    with database.write() as transaction:
        verdicts = [(r, "device" if r is Reason.GENUINE else None) for r in reasons]
        (trail or AuditWriter()).write(transaction, judged(at, verdicts))


def test_the_same_minute_adds_up(database: Database) -> None:
    """One row a minute, reason and writer, however often it is counted up."""
    trail = AuditWriter()
    for second in range(5):
        at = NOW.replace(second=second)
        record(database, at, Reason.GENUINE, Reason.GENUINE, Reason.NOT_OPENED, trail=trail)
    found = rows_of(database, "SELECT reason, times FROM validation_counters ORDER BY reason")
    assert found == [("genuine", 10), ("not_opened", 5)]
    assert rows_of(database, "SELECT device_serial, passes FROM device_activity") == [
        ("device", 10)
    ]


def test_a_batch_may_have_rows_of_several_minutes(database: Database) -> None:
    """Each minute gets its own rows, and a total gets all of them."""
    minutes = [NOW - timedelta(minutes=number) for number in (0, 1, 1)]
    rows = [row for at in minutes for row in judged(at, [(Reason.GENUINE, "device")])]
    repeated = [row._replace(repeat=Repeat.REPLAYED.value) for row in rows]
    trail = AuditWriter()
    for _ in range(2):
        with database.write() as transaction:
            trail.write(transaction, [*rows, *repeated])
    with database.read() as connection:
        assert count_by_step(connection, TimeStep.MINUTE, NOW - timedelta(hours=1)) == {
            floor_to_minute(NOW): Counter({Reason.GENUINE: 4}),
            floor_to_minute(NOW - timedelta(minutes=1)): Counter({Reason.GENUINE: 8}),
        }
        assert count_repeats(connection, NOW) == {Repeat.REPLAYED: 2}
        assert count_ever(connection) == (
            Counter({Reason.GENUINE: 12}),
            Counter({Repeat.REPLAYED: 6}),
        )


def test_hours_are_those_of_utc(database: Database) -> None:
    """Threat 25: whatever zone a time was told in, also where hours begin at half past."""
    india = timezone(timedelta(hours=5, minutes=30))
    record(database, NOW.astimezone(india), Reason.GENUINE)
    record(database, NOW + timedelta(microseconds=1), Reason.NOT_OPENED)
    record(database, NOW + timedelta(minutes=30), Reason.NOT_OPENED, Reason.NOT_OPENED)
    late = datetime(2026, 3, 29, 23, tzinfo=UTC)
    with database.read() as connection:
        if database.dialect_name == "postgresql":
            connection.exec_driver_sql("SET LOCAL TimeZone = 'Asia/Kolkata'")
        assert count_by_step(connection, TimeStep.HOUR, late) == {
            late: Counter({Reason.GENUINE: 1, Reason.NOT_OPENED: 1}),
            late + timedelta(hours=1): Counter({Reason.NOT_OPENED: 2}),
        }


def test_counts_begin_with_a_whole_minute(database: Database) -> None:
    """A minute is counted whole or not at all."""
    for minutes in (0, 1, 2):
        record(database, NOW - timedelta(minutes=minutes), Reason.GENUINE)
    with database.read() as connection:
        [counted] = count_by_step(connection, TimeStep.HOUR, NOW - timedelta(minutes=1)).values()
        assert counted == {Reason.GENUINE: 2}
        assert count_by_step(connection, TimeStep.HOUR, NOW + timedelta(minutes=1)) == {}


def test_steps_of_ten_minutes_begin_at_full_ones(database: Database) -> None:
    """The end is exclusive, by the minute."""
    for minute in (19, 20, 29, 30, 31):
        record(database, NOW.replace(minute=minute), Reason.GENUINE)
    since, until = NOW.replace(minute=20), NOW.replace(minute=31, second=0, microsecond=0)
    begins = floor_to_minute(since)
    with database.read() as connection:
        assert count_by_step(connection, TimeStep.TEN_MINUTES, since, until) == {
            begins: Counter({Reason.GENUINE: 2}),
            begins + timedelta(minutes=10): Counter({Reason.GENUINE: 1}),
        }


def test_hours_that_are_over_are_counted_once(database: Database) -> None:
    """The current one and the one before, while commits may be late, are counted each time."""
    with database.read() as connection:
        now = database_time(connection)
    hour = floor_to_hour(now)
    old, late = hour - timedelta(hours=5), now - timedelta(minutes=5)
    record(database, old, Reason.GENUINE)
    record(database, late, Reason.GENUINE)
    hours = HourCounts()
    since, until = old - timedelta(hours=1), now + timedelta(seconds=1)
    with database.read() as connection:
        first = hours.read(connection, since, until)
    assert list(first) == [hour - timedelta(hours=ago) for ago in (6, 5, 4, 3, 2, 1, 0)]
    assert first[old] == {Reason.GENUINE: 1}
    assert first[old - timedelta(hours=1)] == {}
    record(database, old, Reason.GENUINE)
    record(database, late, Reason.NOT_OPENED)
    with database.read() as connection:
        again = hours.read(connection, since, until)
        assert again[old] == {Reason.GENUINE: 1}, "it was over: it is kept"
        assert again[floor_to_hour(late)][Reason.NOT_OPENED] == 1
        fresh = HourCounts()
        assert fresh.read(connection, since, old + timedelta(minutes=1))[old].total() == 2
        assert hours.read(connection, until, since) == {}


def test_hours_without_gaps() -> None:
    """As many as were asked for, the last one running."""
    hours = hours_until(NOW, 3)
    assert [hour.isoformat() for hour in hours] == [
        "2026-03-29T21:00:00+00:00",
        "2026-03-29T22:00:00+00:00",
        "2026-03-29T23:00:00+00:00",
    ]


def test_what_is_rolled_back_was_never_counted(database: Database) -> None:
    """And what is counted afterwards, by the same writer, is right."""
    trail = AuditWriter()
    with database.write() as transaction:
        trail.write(transaction, judged(NOW, [(Reason.GENUINE, "lost")] * 30))
        transaction.rollback()
    assert rows_of(database, "SELECT count(*) FROM validation_counters") == [(0,)]
    assert rows_of(database, "SELECT count(*) FROM busiest_devices") == [(0,)]
    record(database, NOW, Reason.GENUINE, trail=trail)
    assert rows_of(database, "SELECT times FROM validation_counters") == [(1,)]
    assert rows_of(database, "SELECT device_serial FROM busiest_devices") == [("device",)]


def test_any_serial_can_be_counted(database: Database) -> None:
    """What is special in JSON or SQL is a character like any other."""
    serials = [
        '"',
        "\\",
        "\\u0041",
        "' OR 1=1 --",
        "ñ",
        "照相机",
        "📷",
        "a" * 64,
        "1",
        "null",
        "{}",
    ]
    with database.write() as transaction:
        AuditWriter().write(transaction, judged(NOW, [(Reason.GENUINE, name) for name in serials]))
    found = rows_of(database, "SELECT device_serial FROM device_activity")
    assert {name for (name,) in found} == set(serials)
    assert rows_of(database, "SELECT sum(times) FROM validation_counters") == [(len(serials),)]


def test_totals_only_rise(database: Database) -> None:
    """They have what every writer wrote in whatever minute, and retention takes nothing away."""
    repeated = [r._replace(repeat="replayed") for r in judged(NOW, [(Reason.NOT_OPENED, None)])]
    for minutes, trail in ((0, AuditWriter()), (1, AuditWriter()), (60 * 24 * 400, AuditWriter())):
        at = NOW - timedelta(minutes=minutes)
        record(database, at, Reason.GENUINE, Reason.GENUINE, trail=trail)
        with database.write() as transaction:
            trail.write(transaction, repeated)
    expected = (
        Counter({Reason.GENUINE: 6, Reason.NOT_OPENED: 3}),
        Counter({Repeat.REPLAYED: 3}),
    )
    with database.read() as connection:
        assert count_ever(connection) == expected
    prune(database, NOW + timedelta(days=1), lambda _seconds: False, keks=None)
    with database.read() as connection:
        assert count_by_step(connection, TimeStep.HOUR, NOW - timedelta(days=500)) == {}
        assert count_ever(connection) == expected
