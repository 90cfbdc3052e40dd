"""Counts of verdicts and repeats, which `storage.trail` keeps together with the audit rows.

Whoever asks for figures reads these and never the audit trail, which may have a hundred million
rows.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from sqlalchemy import Connection, func, select

from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.dialects import truncate_to_hour
from birthmark_sma.storage.schema import repeat_counters, running_totals, validation_counters

Minutes: TypeAlias = dict[datetime, Counter[Verdict]]
"""Verdicts by the beginning of their minute."""

_table = validation_counters.c
_repeats = repeat_counters.c
_totals = running_totals.c


def count_by_hour(connection: Connection, since: datetime) -> dict[datetime, Counter[Reason]]:
    """Return how often each reason was given in each hour (UTC) from the minute of `since` on.

    The first hour counts from that minute only; hours in which nothing happened are left out.
    """
    hour = truncate_to_hour(connection, _table.minute)
    rows = connection.execute(
        select(hour, _table.reason, func.sum(_table.times))
        .where(_table.minute >= floor_to_minute(since))
        .group_by(hour, _table.reason)
    )
    hours: dict[datetime, Counter[Reason]] = {}
    for begins, reason, times in rows:
        hours.setdefault(begins, Counter())[Reason(reason)] = int(times)
    return hours


def count_by_minute(connection: Connection, since: datetime) -> Minutes:
    """Return the verdicts of each minute (UTC) from that of `since` on in which there were any."""
    rows = connection.execute(
        select(_table.minute, _table.reason, func.sum(_table.times))
        .where(_table.minute >= floor_to_minute(since))
        .group_by(_table.minute, _table.reason)
    )
    minutes: Minutes = {}
    for minute, reason, times in rows:
        minutes.setdefault(minute, Counter())[Reason(reason).verdict] += int(times)
    return minutes


def count_repeats(connection: Connection, since: datetime) -> Counter[Repeat]:
    """Return how many tokens had come before, by kind, from the minute of `since` on."""
    rows = connection.execute(
        select(_repeats.repeat, func.sum(_repeats.times))
        .where(_repeats.minute >= floor_to_minute(since))
        .group_by(_repeats.repeat)
    )
    return Counter({Repeat(repeat): int(times) for repeat, times in rows})


def count_ever(connection: Connection) -> tuple[Counter[Reason], Counter[Repeat]]:
    """Return how often each reason and each kind of repeat was ever given: neither ever falls."""
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


def floor_to_minute(time: datetime) -> datetime:
    """Return the beginning of the minute, in UTC."""
    return time.astimezone(UTC).replace(second=0, microsecond=0)


def floor_to_hour(time: datetime) -> datetime:
    """Return the beginning of the hour, in UTC."""
    return floor_to_minute(time).replace(minute=0)


def hours_until(time: datetime, count: int) -> list[datetime]:
    """Return the beginnings of as many hours (UTC), oldest first; the last one still runs."""
    last = floor_to_hour(time)
    return [last - timedelta(hours=ago) for ago in reversed(range(count))]
