"""The time that a chart shows, and the table beside it: for any time that a URL can name."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.web.dashboard.charts.time_range import (
    LONGEST,
    SHORTEST,
    Recent,
    TimeRange,
    between,
    floor_to_step,
    list_ranges,
    recent_range,
)
from birthmark_sma.web.dashboard.charts.verdict_chart import VerdictChart

NOW = datetime(2026, 11, 30, 13, 7, 42, 123_456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
times = st.datetimes(timezones=st.just(UTC))
near = st.integers(-5_000_000, 5_000_000).map(lambda seconds: NOW + timedelta(seconds=seconds))
maybe = st.none() | times | near


def chart_of(shown: TimeRange) -> VerdictChart:
    """Return a chart with one PASS in each step, and two FAILs."""
    step, points = shown.step.value, []
    begins = floor_to_step(shown.since, step)
    while begins < shown.until:
        points.append(begins)
        begins += step
    return VerdictChart(shown, points, [1] * len(points), [2] * len(points), Counter())


@given(maybe, maybe, st.sampled_from(Recent))
def test_a_range_is_never_too_long_nor_in_the_future(
    since: datetime | None, until: datetime | None, default: Recent
) -> None:
    shown = between(since, until, NOW, default.length)
    assert SHORTEST <= shown.until - shown.since <= LONGEST
    assert shown.until <= NOW + MINUTE
    for time in (shown.since, shown.until):
        assert (time.second, time.microsecond) == (0, 0)
    if since is not None and until is not None and until <= NOW:
        length = until - since
        if SHORTEST <= length <= LONGEST and until.year >= 2000:
            assert shown.since <= since
            assert shown.until >= until


@given(maybe, maybe)
def test_the_table_has_what_the_chart_has(since: datetime | None, until: datetime | None) -> None:
    chart = chart_of(between(since, until, NOW, timedelta(hours=1)))
    assert len(chart.times) <= 722
    rows = list(chart.parts("/page", {"result": "FAIL"}))
    assert len(rows) <= 33
    assert sum(row.passes for row in rows) == len(chart.times)
    assert sum(row.fails for row in rows) == 2 * len(chart.times)
    assert [row.since for row in rows] == sorted((row.since for row in rows), reverse=True)
    for row in rows:
        assert row.url is None or row.url.startswith("/page?result=FAIL&since=")


@pytest.mark.parametrize("recent", Recent)
def test_ranges_that_end_now(recent: Recent) -> None:
    shown = recent_range(recent, NOW)
    assert shown.until == NOW
    assert timedelta() <= NOW - recent.length - shown.since < shown.step.value or (
        shown.since <= NOW - recent.length
    )
    assert len(chart_of(shown).times) <= 722
    ranges, moves = list_ranges(shown, "/page", {"device": "a&b", "reason": None})
    assert [each.is_current for each in ranges] == [each is recent for each in Recent]
    assert all("device=a%26b" in each.url for each in (*ranges, *moves))
    titles = [each.title for each in moves]
    assert "Later" not in titles
    assert ("Zoom out" in titles) is (recent is not Recent.MONTH)
