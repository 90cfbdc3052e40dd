"""What came of each case, and whether that was right. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from birthmark_sma.simulation.expected_outcomes import Case, Environment, Outcome, right_endings

MAX_SURPRISES = 50
"""So many wrong endings are kept to be told one by one; all are counted."""


@dataclass(frozen=True, slots=True)
class UnexpectedOutcome:
    """An ending that is not the right one, or none."""

    picture: int
    case: Case
    device_serial: str
    aggregator: int
    ended: Outcome
    right: frozenset[Outcome]
    detail: str


@dataclass(slots=True)
class Tally:
    """Counts endings as they come. A picture that goes to two servers ends twice."""

    surroundings: Environment
    endings: dict[Case, Counter[Outcome]] = field(default_factory=dict)
    surprises: list[UnexpectedOutcome] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0

    def count(
        self, case: Case, ended: Outcome, *, picture: int, device_serial: str, aggregator: int,
        detail: str = "",
    ) -> bool:  # fmt: skip
        """Note an ending, and say whether it was right."""
        self.endings.setdefault(case, Counter())[ended] += 1
        right = right_endings(case, self.surroundings)
        if ended in right:
            return True
        if ended is Outcome.UNDECIDED:
            self.lost += 1
        else:
            self.wrong += 1
        if len(self.surprises) < MAX_SURPRISES:
            self.surprises.append(
                UnexpectedOutcome(picture, case, device_serial, aggregator, ended, right, detail)
            )
        return False

    @property
    def ended(self) -> int:
        """How many bundles came to an ending, lost ones among them."""
        return sum(counts.total() for counts in self.endings.values())

    @property
    def right(self) -> int:
        """How many of those were right."""
        return self.ended - self.wrong - self.lost

    def totals(self) -> Mapping[Outcome, int]:
        """How many there are of each ending."""
        return sum(self.endings.values(), Counter())
