"""Count the outcomes of each case and compare them with the right ones. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from birthmark_sma.simulation.expected_outcomes import Case, Environment, Outcome, right_endings

MAX_SURPRISES = 50
"""The first 50 wrong outcomes are kept with details. All are counted."""


@dataclass(frozen=True, slots=True)
class UnexpectedOutcome:
    """A wrong outcome of a bundle, or UNDECIDED for a lost bundle."""

    picture: int
    case: Case
    device_serial: str
    aggregator: int
    ended: Outcome
    right: frozenset[Outcome]
    detail: str


@dataclass(slots=True)
class Tally:
    """Counter of outcomes. A picture that is sent to two servers counts twice."""

    surroundings: Environment
    endings: dict[Case, Counter[Outcome]] = field(default_factory=dict)
    surprises: list[UnexpectedOutcome] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0

    def count(
        self, case: Case, ended: Outcome, *, picture: int, device_serial: str, aggregator: int,
        detail: str = "",
    ) -> bool:  # fmt: skip
        """Count an outcome and return true if it is a right one."""
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
        """The number of bundles with an outcome, including lost ones."""
        return sum(counts.total() for counts in self.endings.values())

    @property
    def right(self) -> int:
        """The number of bundles with a right outcome."""
        return self.ended - self.wrong - self.lost

    def totals(self) -> Mapping[Outcome, int]:
        """Return the number of bundles for each outcome."""
        return sum(self.endings.values(), Counter())
