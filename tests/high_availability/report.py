"""What came of a scenario: counted in the database, and printed as a table at the end."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tests.high_availability.load import Load
from tests.support.programs.running import query


@dataclass(frozen=True)
class Outcome:
    """What one round of a scenario did to the clients."""

    scenario: str
    seconds: float
    """The longest time without a verdict: see `Load.seconds_without_service`."""
    acknowledged: int
    """Verdicts that clients got."""
    refused: int
    """Requests that got 503, or no answer."""
    lost: int
    """Acknowledged verdicts without a row, on the primary or on its standby."""
    doubled: int
    """Tokens with more than one row. Each was sent once, so the server wrote one of them twice."""
    wrong: int
    """Verdicts, or verdicts in rows, that are not the right one."""

    @property
    def is_clean(self) -> bool:
        """True if nothing was lost, doubled or wrong."""
        return not (self.lost or self.doubled or self.wrong)


def take_stock(scenario: str, load: Load, database_urls: Iterable[str]) -> Outcome:
    """Compare what the clients of a load were told with the rows of every node."""
    lost, doubled, wrong = set(), set(), set()
    wrong |= {key for key, told in load.acknowledged.items() if told != load.expected[key]}
    for url in database_urls:
        rows = query(
            url,
            "SELECT encrypted_nuc_hash, count(*), min(validation_result), max(validation_result)"
            " FROM validation_history GROUP BY encrypted_nuc_hash",
        )
        # Rows of the scenarios before this one are left out.
        found = {bytes(key): each for key, *each in rows if bytes(key) in load.expected}
        lost |= load.acknowledged.keys() - found.keys()
        doubled |= {key for key, (count, _, _) in found.items() if count > 1}
        wrong |= {key for key, (_, *told) in found.items() if set(told) != {load.expected[key]}}
    return Outcome(
        scenario,
        load.seconds_without_service(),
        len(load.acknowledged),
        sum(number for status, number in load.statuses.items() if status != "200"),
        len(lost),
        len(doubled),
        len(wrong),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in Markdown, a line for each scenario."""
    lines = [
        "| scenario | rounds | s without service, median | worst | acknowledged | refused"
        " | lost | doubled | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for scenario, grouped in groupby(outcomes, key=lambda each: each.scenario):
        rounds = list(grouped)
        seconds = [each.seconds for each in rounds]
        counts = (
            sum(getattr(each, name) for each in rounds)
            for name in ("acknowledged", "refused", "lost", "doubled", "wrong")
        )
        cells = [scenario, len(rounds), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
        lines.append("| " + " | ".join(map(str, (*cells, *counts))) + " |")
    return "\n".join(lines)
