"""The order in which the requests of one batch are judged: no caller FAILs beyond its limit.

A request is judged if its caller has anything left beside what its earlier requests may still FAIL,
and may then overdraw. Otherwise it waits for these; where they leave nothing, it is refused.
"""

from collections import Counter
from collections.abc import Sequence

from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.errors import RateLimitedError


class FailureTurns:
    """The turns of one batch, of which each place holds one camera token.

    `requests` tells requests apart, whose tokens stand side by side; None is one that no limit
    counts. `callers` are those of the tokens, as limits tell them apart.
    """

    def __init__(
        self, limits: RateLimits, requests: Sequence[object], callers: Sequence[str]
    ) -> None:
        self.failures: Counter[str] = Counter()
        """The number of FAILs that each caller has gathered in this batch."""
        self.refused: dict[int, RateLimitedError] = {}
        """The answers to tokens that are not judged, by their places."""
        self._limits = limits
        self._requests = requests
        self._callers = callers
        self._waiting = _places_of(requests)

    def failed(self, place: int) -> None:
        """Count a FAIL."""
        if self._requests[place] is not None:
            self.failures[self._callers[place]] += 1

    def next(self) -> list[int]:
        """Return the places that are judged now; none once all are judged or refused."""
        turn: list[int] = []
        waiting = []
        left: dict[str, int] = {}
        under_way: Counter[str] = Counter()
        for places in self._waiting:
            who = self._callers[places[0]]
            if self._requests[places[0]] is not None:
                if who not in left:
                    left[who] = self._limits.failures_left(who) - self.failures[who]
                if left[who] <= 0:
                    refusal = self._limits.failure_refusal(who, self.failures[who])
                    self.refused.update(dict.fromkeys(places, refusal))
                    continue
                if under_way[who] >= left[who]:
                    waiting.append(places)
                    continue
                under_way[who] += len(places)
            turn += places
        self._waiting = waiting
        return turn


def _places_of(requests: Sequence[object]) -> list[range]:
    """Return the places of the tokens of each request."""
    found = []
    start = 0
    for at in range(1, len(requests) + 1):
        request = requests[start]
        if at == len(requests) or request is None or requests[at] is not request:
            found.append(range(start, at))
            start = at
    return found
