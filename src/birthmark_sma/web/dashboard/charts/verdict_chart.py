"""The chart of verdicts over time, and the table that says the same without a picture.

The overview and the page of validations show it. It reads the counters alone, never the audit log:
of 30 days these are some rows for each minute, and each process keeps the hours that are over.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.validation.audit_counters import HourCounts, count_by_step
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.portable_sql import TimeStep
from birthmark_sma.web.dashboard.charts.time_range import (
    LONGEST,
    TimeRange,
    between,
    floor_to_step,
    list_ranges,
)
from birthmark_sma.web.query_params import link

_MOST_ROWS = 31  # whole rows of the table: a month has one for each day
_ROWS = (1, 5, 10, 30, 60, 180, 360, 1_440)
"""The minutes of a row of the table: the shortest that gives at most 31 is taken."""


class Part(NamedTuple):
    """A row of the table: a part of the time, its verdicts, and a link that zooms into it."""

    since: datetime
    until: datetime
    passes: int
    fails: int
    url: str | None


@dataclass(frozen=True, slots=True)
class VerdictChart:
    """The verdicts of a range, by step. The last step is incomplete if the range ends now."""

    shown: TimeRange
    times: Sequence[datetime]
    passes: Sequence[int]
    fails: Sequence[int]
    reasons: Counter[Reason]

    @property
    def data(self) -> str:
        """Return JSON for `curve.js`: times (Unix seconds), then PASSes and FAILs of each step."""
        times = [int(each.timestamp()) for each in self.times]
        return json.dumps([times, self.passes, self.fails], separators=(",", ":"))

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """Return the number of each verdict."""
        return {Verdict.PASS: sum(self.passes), Verdict.FAIL: sum(self.fails)}

    @property
    def title(self) -> str:
        """Return the range in words, such as "last 24 hours"."""
        if self.shown.recent is not None:
            return f"last {self.shown.recent.words.removeprefix('1 ')}"
        return f"{self.shown.since:%Y-%m-%d %H:%M} to {self.shown.until:%Y-%m-%d %H:%M} UTC"

    @property
    def step_title(self) -> str:
        """Return the length of a step in words, such as "10 minutes"."""
        minutes = int(self.shown.step.value / timedelta(minutes=1))
        return {1: "minute", 10: "10 minutes"}.get(minutes, "hour")

    def parts(self, path: str, others: Mapping[str, object]) -> Iterator[Part]:
        """Yield the rows of the table, newest first, with links to `path`."""
        length = self.shown.until - self.shown.since
        steps = [timedelta(minutes=each) for each in _ROWS]
        fitting = [
            each for each in steps if each >= self.shown.step.value and length / each <= _MOST_ROWS
        ]
        row = fitting[0] if fitting else steps[-1]
        counted: dict[datetime, tuple[int, int]] = {}
        for time, passes, fails in zip(self.times, self.passes, self.fails, strict=True):
            begins = floor_to_step(time, row)
            before = counted.get(begins, (0, 0))
            counted[begins] = (before[0] + passes, before[1] + fails)
        for begins, (passes, fails) in sorted(counted.items(), reverse=True):
            since, until = max(begins, self.times[0]), min(begins + row, self.shown.until)
            url = None
            if row > TimeStep.MINUTE.value:
                inside = between(since, begins + row, self.shown.until, LONGEST)
                url = link(path, {**others, **inside.query})
            yield Part(since, until, passes, fails, url)


def read_chart(connection: Connection, shown: TimeRange, hours: HourCounts) -> VerdictChart:
    """Return the chart of a range. Its first and its last step are counted whole."""
    step = shown.step.value
    begins = floor_to_step(shown.since, step)
    if shown.step is TimeStep.HOUR:
        counted = hours.read(connection, begins, shown.until)
    else:
        counted = count_by_step(connection, shown.step, begins, shown.until)
    times = []
    while begins < shown.until:
        times.append(begins)
        begins += step
    verdicts = [_count_verdicts(counted.get(each, Counter())) for each in times]
    return VerdictChart(
        shown,
        times,
        [each[Verdict.PASS] for each in verdicts],
        [each[Verdict.FAIL] for each in verdicts],
        sum(counted.values(), Counter[Reason]()),
    )


def chart_values(
    chart: VerdictChart, path: str, others: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the variables of the template `verdict_chart.html`.

    `others` are the other parameters of the page, for the links of the chart.
    """
    recent, moves = list_ranges(chart.shown, path, others or {})
    return {
        "chart": chart,
        "recent_ranges": recent,
        "moves": moves,
        "parts": list(chart.parts(path, others or {})),
    }


def _count_verdicts(reasons: Counter[Reason]) -> Counter[Verdict]:
    verdicts: Counter[Verdict] = Counter()
    for reason, times in reasons.items():
        verdicts[reason.verdict] += times
    return verdicts
