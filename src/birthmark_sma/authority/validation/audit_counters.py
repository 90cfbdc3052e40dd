"""Read the counters of verdicts and repeats.

The stores write the counters in the transaction of the audit rows, so that both always agree.
Statistics, the dashboard and metrics read the counters. They must never scan the audit log, which
may have a hundred million rows (docs/adr/0006).
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select

from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.portable_sql import TimeStep, database_time, truncate_time
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    running_totals,
    validation_counters,
)

_HOUR = timedelta(hours=1)
_LATE = timedelta(minutes=10)
_KEPT = timedelta(days=31)

# Each writer process has rows of its own in these tables, so every query adds up rows.
_table = validation_counters.c
_repeats = repeat_counters.c
_totals = running_totals.c


def count_by_step(
    connection: Connection, step: TimeStep, since: datetime, until: datetime | None = None
) -> dict[datetime, Counter[Reason]]:
    """Return the number of verdicts by step of time (UTC) and reason.

    From the minute of `since` on, and before `until`. The first step is partial if that minute is
    not its start. Steps without verdicts are missing.
    """
    begins = truncate_time(connection, _table.minute, step)
    query = (
        select(begins, _table.reason, func.sum(_table.times))
        .where(_within(_table.minute, since, until))
        .group_by(begins, _table.reason)
    )
    steps: dict[datetime, Counter[Reason]] = {}
    for start, reason, times in connection.execute(query):
        steps.setdefault(start, Counter())[Reason(reason)] = int(times)
    return steps


class HourCounts:
    """The verdicts of whole hours. It keeps those of hours that are over, which do not change.

    A month of a busy authority has a million counters: to add them up takes SQLite a second. Safe
    to use from any thread. Hours that retention deletes stay until they are 31 days old.
    """

    def __init__(self) -> None:
        self._kept: dict[datetime, Counter[Reason]] = {}

    def read(
        self, connection: Connection, since: datetime, until: datetime
    ) -> dict[datetime, Counter[Reason]]:
        """Return the verdicts by hour (UTC), of every hour from that of `since` to `until`."""
        now = database_time(connection)
        begins = floor_to_hour(since)
        hours = [begins + _HOUR * number for number in range(-((begins - until) // _HOUR))]
        found = {each: self._kept[each] for each in hours if each in self._kept}
        missing = next((each for each in hours if each not in found), None)
        if missing is None:
            return found
        counted = count_by_step(connection, TimeStep.HOUR, missing, until)
        # A commit may be late. Hours are kept once they have been over for longer than any takes,
        # and once they are counted to their end.
        settled = min(floor_to_hour(now - _LATE), floor_to_hour(until))
        for each in hours:
            if each >= missing:
                found[each] = counted.get(each, Counter())
                if each < settled:
                    self._kept[each] = found[each]
        for old in [each for each in list(self._kept) if each < now - _KEPT]:
            self._kept.pop(old, None)
        return found


def count_repeats(
    connection: Connection, since: datetime, until: datetime | None = None
) -> Counter[Repeat]:
    """Return the number of repeated tokens by kind, from the minute of `since` on."""
    rows = connection.execute(
        select(_repeats.repeat, func.sum(_repeats.times))
        .where(_within(_repeats.minute, since, until))
        .group_by(_repeats.repeat)
    )
    return Counter({Repeat(repeat): int(times) for repeat, times in rows})


def count_ever(connection: Connection) -> tuple[Counter[Reason], Counter[Repeat]]:
    """Return the all-time totals by reason and by kind of repeat. No total ever decreases."""
    rows = connection.execute(
        select(_totals.counted, _totals.name, func.sum(_totals.times)).group_by(
            _totals.counted, _totals.name
        )
    )
    reasons: Counter[Reason] = Counter()
    repeats: Counter[Repeat] = Counter()
    for counted, name, times in rows:
        if counted == "verdict":
            reasons[Reason(name)] = int(times)
        else:
            repeats[Repeat(name)] = int(times)
    return reasons, repeats


def floor_to_hour(time: datetime) -> datetime:
    """Return the start of the hour of `time`, in UTC."""
    return floor_to_minute(time).replace(minute=0)


def hours_until(time: datetime, count: int) -> list[datetime]:
    """Return the starts of `count` hours (UTC), oldest first. The last hour contains `time`."""
    last = floor_to_hour(time)
    return [last - timedelta(hours=ago) for ago in reversed(range(count))]


def _within(
    minute: ColumnElement[Any], since: datetime, until: datetime | None
) -> ColumnElement[bool]:
    begun = minute >= floor_to_minute(since)
    return begun if until is None else and_(begun, minute < until)
