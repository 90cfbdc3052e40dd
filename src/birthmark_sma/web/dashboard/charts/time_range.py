"""The time that a chart shows: parsed from the URL of a page, and moved by its links.

A range is `range=24h`, which ends now, or `since=...&until=...`, which stands still. The pages with
charts use it. It must never ignore an invalid value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import MAXYEAR, UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from starlette.requests import Request

from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.storage.portable_sql import TimeStep
from birthmark_sma.web.query_params import (
    as_field,
    link,
    parse_choice,
    parse_time,
    refused,
)

LONGEST = timedelta(days=30)
SHORTEST = timedelta(minutes=10)
_MINUTE = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)  # before every authority; nothing underflows after it
# Up to these lengths, a point of the chart is a minute or ten minutes: it has at most 722 points. A
# range that ends now may be a step longer, because it begins with a whole one.
_BY_MINUTE, _BY_TEN_MINUTES = timedelta(hours=6, minutes=1), timedelta(hours=48, minutes=10)


class Recent(StrEnum):
    """The ranges that end now."""

    HOUR = "1h"
    SIX_HOURS = "6h"
    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"

    @property
    def length(self) -> timedelta:
        """Return its length."""
        return _LENGTHS[self][0]

    @property
    def words(self) -> str:
        """Return its length in words."""
        return _LENGTHS[self][1]


_LENGTHS = {
    Recent.HOUR: (timedelta(hours=1), "1 hour"),
    Recent.SIX_HOURS: (timedelta(hours=6), "6 hours"),
    Recent.DAY: (timedelta(hours=24), "24 hours"),
    Recent.WEEK: (timedelta(days=7), "7 days"),
    Recent.MONTH: (timedelta(days=30), "30 days"),
}


class RangeLink(NamedTuple):
    """A link to another range. `is_current` is True for the range that is shown."""

    title: str
    url: str
    is_current: bool = False


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The time from `since` to before `until`: `recent` if it ends now, else None."""

    since: datetime
    until: datetime
    recent: Recent | None = None

    @property
    def step(self) -> TimeStep:
        """Return the time of a point in the chart."""
        length = self.until - self.since
        if length <= _BY_MINUTE:
            return TimeStep.MINUTE
        return TimeStep.TEN_MINUTES if length <= _BY_TEN_MINUTES else TimeStep.HOUR

    @property
    def query(self) -> dict[str, object]:
        """Return the range as query parameters."""
        if self.recent is not None:
            return {"range": self.recent.value}
        return {"since": as_field(self.since), "until": as_field(self.until)}


def parse_range(request: Request, now: datetime, default: Recent) -> TimeRange:
    """Return the range of a request, `default` if it has none. Raises RequestError."""
    since, until = parse_time(request, "since"), parse_time(request, "until")
    recent = parse_choice(request, "range", Recent)
    if since is None and until is None:
        return recent_range(recent or default, now)
    if recent is not None:
        raise refused("Give a range, or since and until.")
    return between(since, until, now, default.length)


def recent_range(recent: Recent, now: datetime) -> TimeRange:
    """Return the range of this length that ends now. It begins with a whole step of its chart."""
    shown = TimeRange(now - recent.length, now, recent)
    return replace(shown, since=floor_to_step(shown.since, shown.step.value))


def between(
    since: datetime | None, until: datetime | None, now: datetime, length: timedelta
) -> TimeRange:
    """Return the range between two times, in whole minutes: 10 minutes to 30 days.

    Without `since` it begins `length` before its end. It never ends after `now`.
    """
    latest = floor_to_minute(now) + _MINUTE
    end = latest if until is None else max(_FIRST, min(_ceil_to_minute(until), latest))
    begins = end - length if since is None else floor_to_minute(since)
    return TimeRange(max(min(begins, end - SHORTEST), end - LONGEST), end)


def list_ranges(
    shown: TimeRange, path: str, others: Mapping[str, object]
) -> tuple[list[RangeLink], list[RangeLink]]:
    """Return links to the ranges that end now, and those that move or zoom the range shown.

    `others` are the other parameters of the page.
    """
    recent = [
        RangeLink(
            each.words, link(path, {**others, "range": each.value}), is_current=each is shown.recent
        )
        for each in Recent
    ]
    length = shown.until - shown.since
    moves = [
        ("Earlier", shown.since - length, shown.since),
        ("Later", shown.until, shown.until + length),
        ("Zoom in", shown.since + length / 4, shown.until - length / 4),
        ("Zoom out", shown.since - length / 2, shown.until + length / 2),
    ]
    useful = {
        "Later": shown.recent is None,
        "Zoom in": length > SHORTEST,
        "Zoom out": length < LONGEST,
    }
    return recent, [
        RangeLink(title, link(path, {**others, **_rounded(since, until).query}))
        for title, since, until in moves
        if useful.get(title, True)
    ]


def floor_to_step(time: datetime, step: timedelta) -> datetime:
    """Return the start of the step of a time, in steps from 1970 on."""
    return time - (time - _EPOCH) % step


def _rounded(since: datetime, until: datetime) -> TimeRange:
    return TimeRange(floor_to_minute(since), floor_to_minute(until))


def _ceil_to_minute(time: datetime) -> datetime:
    whole = floor_to_minute(time)
    return whole if whole == time or whole.year == MAXYEAR else whole + _MINUTE
