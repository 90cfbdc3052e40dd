"""Percentiles of a while, from a histogram that only ever counts up.

PURE. Whoever watches a histogram looks at it now and then; what came between two looks is a
histogram of that while.
"""

from collections import deque
from collections.abc import Sequence


def quantile(bounds: Sequence[int], counts: Sequence[int], share: float) -> float | None:
    """Return the amount that a share (0 to 1) of all amounts do not exceed; None where none is.

    `counts` says how many were at or below each bound, and at last all. Within a bucket amounts are
    taken to lie evenly, the first of which begins at 0; of what is above the highest bound nothing
    is known but that, so it is that bound. As `histogram_quantile` of Prometheus does it.
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
    """Looks at one histogram, not older than a while, of which the first counts as its beginning.

    One thread takes them, the same that asks.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken: deque[tuple[float, list[int]]] = deque()

    def take(self, now: float, counts: list[int]) -> None:
        """Note how many amounts were at or below each bound; `now` is a clock that only goes on."""
        self._taken.append((now, counts))
        while now - self._taken[0][0] > self._seconds:
            self._taken.popleft()

    def since_the_first(self) -> list[int]:
        """Return what came between the first look and the last; nothing where there are not two."""
        if not self._taken:
            return []
        (_, first), (_, last) = self._taken[0], self._taken[-1]
        return [now - before for now, before in zip(last, first, strict=True)]
