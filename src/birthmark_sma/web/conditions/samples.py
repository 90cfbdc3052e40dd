"""The metrics of the last minutes, with the questions that alert rules ask of them.

`watch` adds the samples of /metrics, `table` asks. The functions follow those of PromQL, without
its extrapolation: an increase is the difference between the newest sample and the oldest one of
the window. This module must never read a clock: times come from the caller.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values of labels, sorted by name."""
Values: TypeAlias = Mapping[Labels, float]

MINUTE = 60.0
_KEPT_SECONDS = 16 * MINUTE  # the longest window, and a minute


class Snapshot(NamedTuple):
    """The samples of a moment: values by name of the sample and labels."""

    time: float
    """Unix time in seconds."""
    samples: Mapping[str, Values]


def parse_snapshot(
    text: str, time: float, wanted: Mapping[str, Mapping[str, str]], known: dict[Labels, Labels]
) -> Snapshot:
    """Return the wanted samples in a text of /metrics: by name, those with all these labels.

    `known` keeps the labels, so that the snapshots of a history share them.
    """
    samples: dict[str, dict[Labels, float]] = {name: {} for name in wanted}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if name in samples and wanted[name].items() <= labels.items():
                sorted_labels = tuple(sorted(labels.items()))
                samples[name][known.setdefault(sorted_labels, sorted_labels)] = value
    return Snapshot(time, samples)


class History:
    """The snapshots of the last 16 minutes, oldest first. Owned by one thread at a time."""

    def __init__(self) -> None:
        self._snapshots: deque[Snapshot] = deque()

    def add(self, snapshot: Snapshot) -> None:
        """Add the newest snapshot. Snapshots after its time, from a clock set back, are dropped."""
        while self._snapshots and self._snapshots[-1].time >= snapshot.time:
            self._snapshots.pop()
        self._snapshots.append(snapshot)
        while self._snapshots[0].time < snapshot.time - _KEPT_SECONDS:
            self._snapshots.popleft()

    @property
    def time(self) -> float:
        """Return the Unix time of the newest snapshot."""
        return self._snapshots[-1].time

    def now(self, name: str, **only: str) -> Values:
        """Return the newest values, of the samples with these labels."""
        return _select(self._snapshots[-1], name, only)

    def sum(self, name: str, **only: str) -> float:
        """Return the sum of the newest values."""
        return sum(self.now(name, **only).values())

    def largest(self, name: str, by: str, **only: str) -> dict[str, float]:
        """Return the largest of the newest values for each value of the label `by`."""
        found: dict[str, float] = {}
        for labels, value in self.now(name, **only).items():
            key = dict(labels).get(by, "")
            found[key] = max(found.get(key, value), value)
        return found

    def increase(self, name: str, seconds: float, **only: str) -> dict[Labels, float]:
        """Return how much counters have risen in the last `seconds`.

        A counter that fell was reset, and has risen by its value. One that is new has risen from 0,
        unless no counter of this name was there: then nobody could read them.
        """
        window = [each for each in self._window(seconds) if each.samples.get(name)]
        if not window:
            return {}
        first = _select(window[0], name, only)
        risen: dict[Labels, float] = {}
        for labels, value in self.now(name, **only).items():
            before = first.get(labels, 0.0)
            risen[labels] = value - before if value >= before else value
        return risen if len(window) > 1 else dict.fromkeys(risen, 0.0)

    def rise(self, name: str, seconds: float, **only: str) -> float:
        """Return the sum of the increases."""
        return sum(self.increase(name, seconds, **only).values())

    def rate(self, name: str, seconds: float, **only: str) -> float:
        """Return the sum of the increases per second."""
        window = self._window(seconds)
        elapsed = window[-1].time - window[0].time
        return self.rise(name, seconds, **only) / elapsed if elapsed > 0 else 0.0

    def rises(self, name: str, by: str, seconds: float, **only: str) -> dict[str, float]:
        """Return the sums of the increases for each value of the label `by`."""
        found: dict[str, float] = {}
        for labels, value in self.increase(name, seconds, **only).items():
            key = dict(labels).get(by, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def changes(self, name: str, seconds: float) -> int:
        """Return how often the value of a sample without labels has changed."""
        values = [each.samples.get(name, {}).get(()) for each in self._window(seconds)]
        known = [each for each in values if each is not None]
        return sum(before != after for before, after in pairwise(known))

    def quantile(self, share: float, name: str, seconds: float, **only: str) -> float | None:
        """Return a quantile of a histogram's increase, or None without observations.

        Linear between the bounds of a bucket, as PromQL's histogram_quantile.
        """
        counts: dict[float, float] = {}
        for labels, value in self.increase(f"{name}_bucket", seconds, **only).items():
            bound = float(dict(labels)["le"])
            counts[bound] = counts.get(bound, 0.0) + value
        return _quantile(share, sorted(counts.items()))

    def _window(self, seconds: float) -> Sequence[Snapshot]:
        begins = self.time - seconds
        return [each for each in self._snapshots if each.time >= begins]


def _select(snapshot: Snapshot, name: str, only: Mapping[str, str]) -> dict[Labels, float]:
    """Return the samples whose labels have these values; several are separated by `|`."""
    allowed = {label: set(values.split("|")) for label, values in only.items()}
    return {
        labels: value
        for labels, value in snapshot.samples.get(name, {}).items()
        if _has(dict(labels), allowed.items())
    }


def _has(labels: Mapping[str, str], allowed: Iterable[tuple[str, set[str]]]) -> bool:
    return all(labels.get(label) in values for label, values in allowed)


def _quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float | None:
    """Return a quantile of cumulative counts by upper bound, the last of which is infinite."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = share * buckets[-1][1]
    place = bisect_left([count for _, count in buckets], rank)
    bound, count = buckets[place]
    below_bound, below = buckets[place - 1] if place else (0.0, 0.0)
    if place == len(buckets) - 1:
        return below_bound
    return below_bound + (bound - below_bound) * (rank - below) / (count - below)
