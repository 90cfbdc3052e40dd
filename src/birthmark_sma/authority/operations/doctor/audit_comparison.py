"""Queries that count the audit rows of a day and read its counters, to detect tampering.

Rows and the counters of minutes are written in one transaction, so on one snapshot they agree, even
while servers write. `audit_log` compares the results. `hold_snapshot` must come first in the
transaction.
"""

from collections import Counter
from datetime import date, datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, literal, select, union_all

from birthmark_sma.storage.schema.activity import device_activity
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    validation_counters,
    validation_history,
)

_rows = validation_history.c
_counters = validation_counters.c
_repeats = repeat_counters.c
_activity = device_activity.c


class Span(NamedTuple):
    """A UTC day, or a part of it: from `begins` (inclusive) to `ends` (exclusive)."""

    begins: datetime
    ends: datetime

    @property
    def day(self) -> date:
        """The UTC day of the span."""
        return self.begins.date()


class Tally(NamedTuple):
    """The number of verdicts by reason, and of repeated tokens by kind of repeat."""

    reasons: Counter[str]
    repeats: Counter[str]
    misjudged: int = 0
    """The number of rows whose verdict does not match their reason."""


def oldest_counted(connection: Connection) -> datetime | None:
    """Return the oldest minute that has a counter, or None if there is none."""
    oldest: datetime | None = connection.execute(select(func.min(_counters.minute))).scalar_one()
    return oldest


def is_any_row_before(connection: Connection, when: datetime) -> bool:
    """Return whether there are audit rows older than a time."""
    found = select(_rows.validated_at).where(_rows.validated_at < when).limit(1)
    return connection.execute(found).first() is not None


def newest_before(connection: Connection, before: datetime) -> datetime | None:
    """Return the newest time before `before` that has an audit row or a counter, or None."""
    found = [
        connection.execute(select(func.max(time)).where(time < before)).scalar_one()
        for time in (_rows.validated_at, _counters.minute)
    ]
    return max((each for each in found if each is not None), default=None)


def read_counters(connection: Connection, span: Span) -> Tally:
    """Return the sums of the counters of a span."""
    reasons, repeats = (
        select(name, func.sum(times))
        .where(minute >= span.begins, minute < span.ends)
        .group_by(name)
        for name, times, minute in (
            (_counters.reason, _counters.times, _counters.minute),
            (_repeats.repeat, _repeats.times, _repeats.minute),
        )
    )
    # PostgreSQL's sum of a bigint is numeric, which arrives as Decimal.
    return Tally(
        Counter({name: int(times) for name, times in connection.execute(reasons)}),
        Counter({name: int(times) for name, times in connection.execute(repeats)}),
    )


def count_rows(connection: Connection, span: Span, genuine: str) -> Tally:
    """Count the audit rows of a span. `genuine` is the only reason whose verdict is PASS."""
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


def count_devices_with_missing_rows(connection: Connection, span: Span) -> int:
    """Return the number of devices with fewer PASS rows than were counted.

    More rows than were counted are no fault: a server counts them up to 3 seconds later, and not at
    all if it is killed before. The span must be a full day, because these counters are by the day.
    """
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
    # Counters are negative in the union. Unlike a join, this also finds devices that have a counter
    # and no row.
    both = union_all(passed, counted).subquery()
    lacking = (
        select(both.c.serial).group_by(both.c.serial).having(func.sum(both.c.number) < 0).subquery()
    )
    return connection.execute(select(func.count()).select_from(lacking)).scalar_one()
