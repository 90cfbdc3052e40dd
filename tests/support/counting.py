"""Assert that the counters and the replay ledger agree with a scan of the whole audit log."""

from collections import Counter
from datetime import date

from sqlalchemy import select

from birthmark_sma.authority.devices.activity import most_active
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema import (
    device_activity,
    repeat_counters,
    resubmitted_tokens,
    sighted_tokens,
    validation_counters,
    validation_history,
)


def assert_counters_are_those_of_the_trail(database: Database) -> int:
    """Assert that every counter equals a scan of the audit log. Return the number of rows."""
    trail, counters = validation_history.c, validation_counters.c
    with database.read() as connection:
        rows = connection.execute(
            select(
                trail.validated_at,
                trail.reason,
                trail.validation_result,
                trail.device_serial,
                trail.caller,
                trail.repeat,
            )
        ).all()
        minutes: Counter[tuple[object, str]] = Counter()
        for counted in connection.execute(select(counters.minute, counters.reason, counters.times)):
            minutes[counted.minute, counted.reason] += counted.times
        activity = connection.execute(select(device_activity)).all()
    assert minutes == Counter(
        (row.validated_at.replace(second=0, microsecond=0), row.reason) for row in rows
    )
    passes = Counter(
        (row.validated_at.date(), row.device_serial)
        for row in rows
        if row.validation_result == "PASS"
    )
    assert {(each.day, each.device_serial): each.passes for each in activity} == passes
    assert {
        (each.day, each.device_serial): each.pictures for each in activity if each.pictures
    } == Counter(
        (row.validated_at.date(), row.device_serial)
        for row in rows
        if row.validation_result == "PASS" and row.caller is not None and row.repeat is None
    )
    for day in {day for day, _ in passes}:
        assert_the_busiest_are_listed(database, day, passes)
    return len(rows)


def assert_the_ledger_agrees_with_the_trail(database: Database) -> None:
    """Assert that the replay ledger agrees with the audit log.

    It has one token for each row without a repeat. Counters and ledger know every repeat, and the
    dual submissions are those of another caller than the first.
    """
    trail, counters = validation_history.c, repeat_counters.c
    with database.read() as connection:
        kinds = Counter(connection.execute(select(trail.repeat)).scalars())
        counted: Counter[str] = Counter()
        for row in connection.execute(select(counters.repeat, counters.times)):
            counted[row.repeat] += row.times
        first_callers = {
            bytes(row.digest): row.first_caller
            for row in connection.execute(select(sighted_tokens))
        }
        repeats = connection.execute(select(resubmitted_tokens)).all()
    assert kinds.pop(None, 0) == len(first_callers)
    assert counted == kinds
    assert sum(row.times for row in repeats) == kinds.total()
    others = [row for row in repeats if row.caller != first_callers[bytes(row.digest)]]
    assert len(others) == kinds["dual_submission"]


def assert_the_busiest_are_listed(
    database: Database, day: date, passes: Counter[tuple[date, str]]
) -> None:
    """Assert that the ten highest counts of a day equal a scan. The order within a tie is free."""
    highest = sorted((n for (each, _), n in passes.items() if each == day), reverse=True)[:10]
    with database.read() as connection:
        assert [n for _, n in most_active(connection, [day], limit=10)] == highest
