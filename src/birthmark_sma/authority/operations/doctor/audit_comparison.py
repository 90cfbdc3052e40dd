"""Count the audit rows of a day, and what its counters say, to find rows that were tampered with.

Rows and counters are written in one transaction: on one snapshot they agree, while servers run.
"""

from collections import Counter
from datetime import date, datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, literal, select, text, union_all

from birthmark_sma.authority.operations.row_counts import lock_tables
from birthmark_sma.storage.schema import (
    device_activity,
    repeat_counters,
    validation_counters,
    validation_history,
)

_rows = validation_history.c
_counters = validation_counters.c
_repeats = repeat_counters.c
_activity = device_activity.c


class Span(NamedTuple):
    """A day (UTC), or the part of it that is looked at: from `begins` to before `ends`."""

    begins: datetime
    ends: datetime

    @property
    def day(self) -> date:
        """The day that it lies in."""
        return self.begins.date()


class Tally(NamedTuple):
    """How often each reason and each kind of repeat was given."""

    reasons: Counter[str]
    repeats: Counter[str]
    misjudged: int = 0
    """How many rows have a verdict that is not their reason's."""


def hold_still(connection: Connection) -> None:
    """Let all that follows in this transaction see one moment. Before its first query."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        lock_tables(connection)


def oldest_counted(connection: Connection) -> datetime | None:
    """Return the first minute that has a counter."""
    oldest: datetime | None = connection.execute(select(func.min(_counters.minute))).scalar_one()
    return oldest


def is_any_row_before(connection: Connection, when: datetime) -> bool:
    """Say whether there are audit rows from before a time."""
    found = select(_rows.validated_at).where(_rows.validated_at < when).limit(1)
    return connection.execute(found).first() is not None


def newest_before(connection: Connection, before: datetime) -> datetime | None:
    """Return the newest time before this one of which there is a row or a counter."""
    found = [
        connection.execute(select(func.max(time)).where(time < before)).scalar_one()
        for time in (_rows.validated_at, _counters.minute)
    ]
    return max((each for each in found if each is not None), default=None)


def read_counters(connection: Connection, span: Span) -> Tally:
    """Add up the counters of a span."""
    reasons, repeats = (
        select(name, func.sum(times))
        .where(minute >= span.begins, minute < span.ends)
        .group_by(name)
        for name, times, minute in (
            (_counters.reason, _counters.times, _counters.minute),
            (_repeats.repeat, _repeats.times, _repeats.minute),
        )
    )
    return Tally(
        Counter({name: int(times) for name, times in connection.execute(reasons)}),
        Counter({name: int(times) for name, times in connection.execute(repeats)}),
    )


def count_rows(connection: Connection, span: Span, genuine: str) -> Tally:
    """Count the audit rows of a span. `genuine` is the one reason for PASS."""
    columns = (_rows.reason, _rows.validation_result, _rows.repeat)
    found = connection.execute(
        select(*columns, func.count())
        .where(_rows.validated_at >= span.begins, _rows.validated_at < span.ends)
        .group_by(*columns)
    )
    reasons: Counter[str] = Counter()
    repeats: Counter[str] = Counter()
    misjudged = 0
    for reason, result, repeat, number in found:
        reasons[reason] += number
        if repeat is not None:
            repeats[repeat] += number
        if (result == "PASS") != (reason == genuine):
            misjudged += number
    return Tally(reasons, repeats, misjudged)


def count_devices_that_differ(connection: Connection, span: Span) -> int:
    """Return how many devices have another number of PASS rows than was counted for them."""
    passed = (
        select(_rows.device_serial.label("serial"), func.count().label("number"))
        .where(
            _rows.validated_at >= span.begins,
            _rows.validated_at < span.ends,
            _rows.validation_result == "PASS",
        )
        .group_by(_rows.device_serial)
    )
    counted = select(_activity.device_serial, literal(0) - _activity.passes).where(
        _activity.day == span.day
    )
    both = union_all(passed, counted).subquery()
    differing = (
        select(both.c.serial)
        .group_by(both.c.serial)
        .having(func.sum(both.c.number) != 0)
        .subquery()
    )
    return connection.execute(select(func.count()).select_from(differing)).scalar_one()
