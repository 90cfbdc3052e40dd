"""Percentiles over a time window, from a cumulative histogram.

PURE: no clock, no I/O. The difference of two snapshots of a histogram is the histogram of the time
between them. `web.middleware.request_metrics` uses this module for latencies.
"""

from collections import deque
from collections.abc import Sequence


def quantile(bounds: Sequence[int], counts: Sequence[int], share: float) -> float | None:
    """Return the value that a share (0 to 1) of all amounts do not exceed; None without amounts.

    `counts` holds the number of amounts at or below each bound, and at the end the number of all.
    As in Prometheus' `histogram_quantile`, amounts are assumed to be spread evenly in a bucket, and
    the first bucket begins at 0. A quantile above the highest bound is reported as that bound.
    """
    if not counts[-1]:
        return None
    rank = share * counts[-1]
    place = next(n for n, count in enumerate(counts) if count >= rank and count)
    if place == len(bounds):
        return float(bounds[-1])
    below = counts[place - 1] if place else 0
    start = bounds[place - 1] if place else 0
    return start + (bounds[place] - start) * (rank - below) / (counts[place] - below)


class Snapshots:
    """The snapshots of one histogram from the last `seconds` seconds.

    Not thread-safe: the same thread takes and reads them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken: deque[tuple[float, list[int]]] = deque()

    def take(self, now: float, counts: list[int]) -> None:
        """Add a snapshot and drop those that are too old.

        `now` is in seconds of a monotonic clock. `counts` as for `quantile`.
        """
        self._taken.append((now, counts))
        while now - self._taken[0][0] > self._seconds:
            self._taken.popleft()

    def since_the_first(self) -> list[int]:
        """Return the counts between the oldest and the newest snapshot.

        With one snapshot all counts are 0; without any, the list is empty.
        """
        if not self._taken:
            return []
        (_, first), (_, last) = self._taken[0], self._taken[-1]
        return [now - before for now, before in zip(last, first, strict=True)]
