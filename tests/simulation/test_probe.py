"""What is found out of an authority before a run, and when there is no sense in a run."""

import asyncio
from typing import Any

import pytest

from birthmark_sma.client import AsyncAuthorityClient, Options
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.simulation.expected_outcomes import Environment
from birthmark_sma.simulation.target import Site, probe
from tests.support.http.faulty_server import (
    FAILED,
    PASSED,
    Behaviour,
    FaultyServer,
    all_pass,
)
from tests.support.http.validation_calls import some_token

QUICK = Options(deadline=1.0, attempts=1)
REFUSED: dict[str, Any] = {"error": "You have validated this camera token before."}


def answering(result: dict[str, Any]) -> Behaviour:
    """An authority that gives this result to the one token that it is asked about."""
    return lambda visit: visit.answer({"results": [result]})


def busy(visit: Any) -> None:
    """An authority that is overloaded."""
    visit.answer({}, 503, "application/problem+json", retry_after="60")


def probed(*behaviours: Behaviour) -> Environment:
    """Probe with one aggregation server."""

    async def ask() -> Environment:
        async with AsyncAuthorityClient(server.url, options=QUICK) as client:
            return await probe([client], some_token(), reports=False)

    with FaultyServer(*behaviours) as server:
        return asyncio.run(ask())


def test_whether_a_caller_is_answered_twice() -> None:
    assert probed(all_pass).answers_repeats
    assert not probed(all_pass, answering(REFUSED)).answers_repeats


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (answering(FAILED), "PASS first and then FAIL"),
        (busy, "unavailable"),
        (lambda visit: visit.reset(), "unreachable"),
        (answering(PASSED | {"validation_result": "MAYBE"}), "not_understood"),
    ],
)
def test_no_second_answer_is_no_policy(second: Behaviour, words: str) -> None:
    """Else a run would take every second submission for wrong, or every refusal for right."""
    with pytest.raises(ConfigurationError, match=words):
        probed(all_pass, second)


def test_a_camera_that_is_played_keeps_no_connection_open() -> None:
    """On one that was open before, an attempt to be provisioned could take for ever."""
    with FaultyServer(lambda visit: visit.answer({})) as server:
        with Site(server.url).http_client() as client:
            for _ in range(2):
                client.post(server.url, content=b"{}")
        assert server.connections == len(server.visits) == 2
