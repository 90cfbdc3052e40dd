"""Counts of verdicts, which `storage.trail` keeps together with the audit rows.

Whoever asks for figures reads these and never the audit trail, which may have a hundred million
rows.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, func, select

from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.dialects import hour_of
from birthmark_sma.storage.schema import validation_counters

_table = validation_counters.c


def count_by_hour(connection: Connection, since: datetime) -> dict[datetime, Counter[Reason]]:
    """Return how often each reason was given in each hour (UTC) from the minute of `since` on.

    The first hour counts from that minute only; hours in which nothing happened are left out.
    """
    hour = hour_of(connection, _table.minute)
    rows = connection.execute(
        select(hour, _table.reason, func.sum(_table.times))
        .where(_table.minute >= floor_to_minute(since))
        .group_by(hour, _table.reason)
    )
    hours: dict[datetime, Counter[Reason]] = {}
    for begins, reason, times in rows:
        hours.setdefault(begins, Counter())[Reason(reason)] = int(times)
    return hours


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
