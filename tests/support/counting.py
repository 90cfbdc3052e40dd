"""Assert that counters, replay ledger and chains agree with a scan of the whole audit log."""

from collections import Counter
from contextlib import closing
from datetime import date

from sqlalchemy import func, select

from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.devices.activity import most_active
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.locks import hold_snapshot
from birthmark_sma.storage.schema.activity import device_activity
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    resubmitted_tokens,
    sighted_tokens,
    validation_counters,
    validation_history,
)
from tests.support.programs.running import wait_until

_ACTIVITY_SECONDS = 15.0


def assert_counters_are_those_of_the_trail(database: Database, *, killed: bool = False) -> int:
    """Assert that every counter equals a scan of the audit log. Return the number of rows.

    A server adds the activity of devices every few seconds, so this waits for it. Where a server
    was `killed`, some of the activity may be missing.
    """
    trail, counters = validation_history.c, validation_counters.c
    with database.read() as connection:
        rows = connection.execute(select(trail.validated_at, trail.reason)).all()
        minutes: Counter[tuple[object, str]] = Counter()
        for counted in connection.execute(select(counters.minute, counters.reason, counters.times)):
            minutes[counted.minute, counted.reason] += counted.times
    assert minutes == Counter(
        (row.validated_at.replace(second=0, microsecond=0), row.reason) for row in rows
    )
    wait_until(lambda: _activity_agrees(database, killed=killed), _ACTIVITY_SECONDS)
    return len(rows)


def _activity_agrees(database: Database, *, killed: bool) -> bool:
    """Return true if the activity of devices is that of the audit log, and their list is right."""
    trail = validation_history.c
    with database.read() as connection:
        rows = connection.execute(
            select(trail.validated_at, trail.device_serial, trail.caller, trail.repeat).where(
                trail.validation_result == "PASS"
            )
        ).all()
        activity = connection.execute(select(device_activity)).all()
    passes = Counter((row.validated_at.date(), row.device_serial) for row in rows)
    pictures = Counter(
        (row.validated_at.date(), row.device_serial)
        for row in rows
        if row.caller is not None and row.repeat is None
    )
    counted = {(each.day, each.device_serial): each.passes for each in activity}
    taken = {(each.day, each.device_serial): each.pictures for each in activity if each.pictures}
    if killed:
        # Nothing is counted twice.
        return Counter(counted) <= passes and Counter(taken) <= pictures
    days = {day for day, _ in passes}
    return (
        counted == passes
        and taken == pictures
        and all(_busiest_are_listed(database, day, passes) for day in days)
    )


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


def assert_the_chains_verify(database: Database) -> None:
    """Assert that `sma audit verify` finds nothing, and that it has seen every row of the log."""
    done = Verified()
    with database.read() as connection:
        hold_snapshot(connection)
        number = connection.execute(select(func.count()).select_from(validation_history))
        found = list(verify(DatabaseReader(connection), None, [], done))
        assert done.rows == number.scalar_one()
    assert not found, "\n".join(map(str, found[:20]))


def assert_the_chains_at_verify(database_url: str) -> None:
    """Assert the same of the database at a URL."""
    with closing(open_database(database_url)) as database:
        assert_the_chains_verify(database)


def _busiest_are_listed(database: Database, day: date, passes: Counter[tuple[date, str]]) -> bool:
    """Return true if the ten highest counts of a day equal a scan. Ties may have any order."""
    highest = sorted((n for (each, _), n in passes.items() if each == day), reverse=True)[:10]
    with database.read() as connection:
        return [n for _, n in most_active(connection, [day], limit=10)] == highest
