"""The watch: from the text of /metrics to conditions that hold, and fire after a while."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from birthmark_sma.web.conditions.table import CONDITIONS, Severity
from birthmark_sma.web.conditions.watch import WANTED, ConditionWatch

UP = "# TYPE sma_database_up gauge\nsma_database_up {}\n"
FAILING = (
    "# TYPE sma_failing_workers gauge\n"
    'sma_failing_workers{writer="validation"} 1\nsma_failing_workers{writer="provisioning"} 2\n'
)


class Scraped:
    """The text that a watch reads, and the watch."""

    def __init__(self) -> None:
        self.text = UP.format(1)
        self.watch = ConditionWatch(self.read, ThreadPoolExecutor(1))

    async def read(self) -> bytes:
        """Return the text as /metrics does."""
        return self.text.encode()

    def held(self, *times: float) -> list[tuple[str, bool]]:
        """Evaluate at these times; return the names that hold after the last, and if they fire."""
        for time in times:
            asyncio.run(self.watch.evaluate(time))
        return [(each.condition.name, each.fires) for each in self.watch.held]


@pytest.fixture
def scraped() -> Scraped:
    """Return a watch that has seen nothing yet."""
    return Scraped()


def test_it_fires_after_it_has_held_for_long_enough(scraped: Scraped) -> None:
    assert scraped.held(0) == []
    scraped.text = UP.format(0)
    assert scraped.held(15, 30, 60) == [("SmaDatabaseDown", False)]
    assert scraped.held(75) == [("SmaDatabaseDown", True)]
    scraped.text = UP.format(1)
    assert scraped.held(90) == []
    scraped.text = UP.format(0)
    assert scraped.held(105) == [("SmaDatabaseDown", False)], "it begins anew"


def test_a_clock_that_is_set_back_fires_nothing_early(scraped: Scraped) -> None:
    scraped.text = UP.format(0)
    assert scraped.held(10_000, 100) == [("SmaDatabaseDown", False)]
    assert scraped.held(161) == [("SmaDatabaseDown", True)]


def test_the_summary_names_all_labels(scraped: Scraped) -> None:
    scraped.text += FAILING
    scraped.held(0)
    [held] = scraped.watch.held
    assert held.summary.startswith("The provisioning, validation writer cannot write;")


def test_a_text_that_cannot_be_parsed_ends_nothing(scraped: Scraped) -> None:
    """The next evaluation goes on from the last one."""
    scraped.text = "sma_database_up is none"
    with pytest.raises(ValueError, match="could not convert"):
        scraped.held(0)
    scraped.text = UP.format(0)
    assert scraped.held(15) == [("SmaDatabaseDown", False)]


def test_the_table() -> None:
    """All but the alert for a server that is gone can be evaluated."""
    assert [each.name for each in CONDITIONS if each.check is None] == ["SmaDown"]
    assert len({each.name for each in CONDITIONS}) == len(CONDITIONS)
    assert {each.severity for each in CONDITIONS} == set(Severity)
    assert "up" not in WANTED
    route = {"route": "/api/v1/validate/nuc"}
    assert WANTED["sma_http_request_duration_seconds_bucket"] == route
    assert WANTED["sma_verdicts_total"] == {}, "of PASS and of FAIL"
