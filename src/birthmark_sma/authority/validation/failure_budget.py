"""Choose which requests of a batch are judged, so that callers keep to their rate limit of FAILs.

Called by `validation.service` in the writer thread, in several turns for one batch. A request is
judged if its caller would have budget left even if all tokens of its earlier requests in this turn
FAIL. The last request may overdraw the budget, as its tokens are judged together. Other requests
wait for the next turn. A request is refused if its caller has no budget left.
This module must not write anything: it only counts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.errors import RateLimitedError

Answer = TypeVar("Answer")


def judge_in_turns(
    budget: "FailureBudget",
    judge: Callable[[Sequence[int]], Sequence[Answer]],
    is_fail: Callable[[Answer], bool],
) -> list[Answer | RateLimitedError]:
    """Judge the tokens of a batch in turns; return an answer for each place.

    `judge` judges the tokens at some places. A refused token gets a RateLimitedError instead.
    """
    answers: dict[int, Answer | RateLimitedError] = {}
    while turn := budget.next():
        for place, answer in zip(turn, judge(turn), strict=True):
            answers[place] = answer
            if is_fail(answer):
                budget.failed(place)
    answers |= budget.refused
    return [answers[place] for place in range(len(answers))]


class FailureBudget:
    """The turns of one batch. A place is the index of a camera token in the batch.

    `requests` has an object for each token that identifies its request; the tokens of a request
    are adjacent. None means that no limit counts the token. `callers` has the caller of each token,
    as `Caller.partition` names it.
    """

    def __init__(
        self, limits: RateLimits, requests: Sequence[object], callers: Sequence[str]
    ) -> None:
        self.failures: Counter[str] = Counter()
        """The number of FAILs of each caller in this batch."""
        self.refused: dict[int, RateLimitedError] = {}
        """The errors of the tokens that are not judged, by place."""
        self._limits = limits
        self._requests = requests
        self._callers = callers
        self._waiting = _places_of(requests)

    def failed(self, place: int) -> None:
        """Count a FAIL of the token at `place` against its caller's limit."""
        if self._requests[place] is not None:
            self.failures[self._callers[place]] += 1

    def next(self) -> list[int]:
        """Return the places to judge in this turn.

        An empty list means that every token has been judged or refused. The caller must report each
        FAIL with `failed` before it calls this again.
        """
        turn: list[int] = []
        waiting = []
        left: dict[str, int] = {}
        wanted = Counter(self._callers[each[0]] for each in self._waiting for _ in each)
        under_way: Counter[str] = Counter()
        for places in self._waiting:
            who = self._callers[places[0]]
            if self._requests[places[0]] is not None:
                # The limit is read once a turn, so that all requests of a caller see one number.
                if who not in left:
                    failed = self.failures[who]
                    left[who] = self._limits.reserve_failures(who, failed, wanted[who])
                if left[who] <= 0:
                    # All tokens of a request are refused together.
                    refusal = self._limits.failure_refusal(who, self.failures[who])
                    self.refused.update(dict.fromkeys(places, refusal))
                    continue
                # If all tokens under way FAIL, nothing would be left: wait for their verdicts.
                if under_way[who] >= left[who]:
                    waiting.append(places)
                    continue
                under_way[who] += len(places)
            turn += places
        self._waiting = waiting
        return turn


def _places_of(requests: Sequence[object]) -> list[range]:
    """Return the places of each request, in order. A token with None is a request of its own."""
    found = []
    start = 0
    for at in range(1, len(requests) + 1):
        request = requests[start]
        if at == len(requests) or request is None or requests[at] is not request:
            found.append(range(start, at))
            start = at
    return found
