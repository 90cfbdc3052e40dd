"""Read the counters of verdicts and repeats.

The stores write the counters in the transaction of the audit rows, so that both always agree.
Statistics, the dashboard and metrics read the counters. They must never scan the audit log, which
may have a hundred million rows (docs/adr/0006).
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy import Connection, func, select

from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.portable_sql import truncate_to_hour
from birthmark_sma.storage.schema.validations import (
    repeat_counters,
    running_totals,
    validation_counters,
)

Minutes: TypeAlias = dict[datetime, Counter[Verdict]]
"""The number of each verdict, by the start of the minute (UTC)."""

# Each writer process has rows of its own in these tables, so every query adds up rows.
_table = validation_counters.c
_repeats = repeat_counters.c
_totals = running_totals.c


def count_by_hour(connection: Connection, since: datetime) -> dict[datetime, Counter[Reason]]:
    """Return the number of verdicts by hour (UTC) and reason, from the minute of `since` on.

    The first hour is partial: it starts at that minute. Hours without verdicts are missing.
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
    """Return the number of each verdict by minute (UTC), from the minute of `since` on.

    Minutes without verdicts are missing.
    """
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
    """Return the number of repeated tokens by kind, from the minute of `since` on."""
    rows = connection.execute(
        select(_repeats.repeat, func.sum(_repeats.times))
        .where(_repeats.minute >= floor_to_minute(since))
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
