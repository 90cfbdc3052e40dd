"""What an aggregation server answers to a camera that is played, and whether that will do."""

import json

import pytest

from birthmark_sma.simulation.cases import ASSUMED, BY_ONE_CAMERA, Case, Ending, right_endings
from birthmark_sma.simulation.delivery import Answer, fault_in
from tests.support.commands import sma
from tests.support.faulty import FaultyServer
from tests.support.running import Running

GOOD = right_endings(Case.GENUINE, ASSUMED)
FORGED = right_endings(Case.FORGED_SIGNATURE, ASSUMED)
TAMPERED = right_endings(Case.TAMPERED_TAG, ASSUMED)
REPLAYED = right_endings(Case.REPLAYED_BUNDLE, ASSUMED)


@pytest.mark.parametrize("case", BY_ONE_CAMERA)
@pytest.mark.parametrize("status", [302, 404, 405, 408, 421, 429, 500, 503])
def test_what_says_nothing_of_the_bundle_will_never_do(status: int, case: Case) -> None:
    fault = fault_in(Answer(status), right_endings(case, ASSUMED))
    assert fault is not None
    assert "nothing of the bundle" in fault


@pytest.mark.parametrize(
    ("right", "statuses"),
    [
        (GOOD, {200, 202}),
        (FORGED, {400, 403, 409, 422}),
        (TAMPERED, {200, 202, 400, 403, 409, 422}),
        (REPLAYED, {200, 202, 400, 403, 409, 422}),
    ],
)
def test_a_status_alone(right: frozenset[Ending], statuses: set[int]) -> None:
    for status in (200, 202, 400, 403, 409, 422):
        assert (fault_in(Answer(status), right) is None) is (status in statuses), status


def test_an_ending_counts_more_than_the_status() -> None:
    assert fault_in(Answer(422, Ending.WRONG_SIGNATURE), FORGED) is None
    assert fault_in(Answer(200, Ending.PASS), TAMPERED) == "it should be FAIL"
    assert fault_in(Answer(503, Ending.UNDECIDED), GOOD) == "it should be PASS"
    assert fault_in(Answer(None, detail="refused"), GOOD) == "refused"


def test_a_server_that_takes_everything_is_found_out(running: Running) -> None:
    """It says no ending, and 202 to each: that will not do for a forged signature."""
    with FaultyServer(lambda visit: visit.answer({"id": 1}, 202)) as server:
        sent = sma(
            "simulate", "camera", running.server.url, "--to", f"{server.url}/bundles",
            "--case", "genuine", "--case", "forged-signature", "--pictures", "2",
            "--interval", "0", "--json", environ=running.environ,
        )  # fmt: skip
    assert sent.returncode == 1
    assert "1 of 2 bundles were not answered as they should be" in sent.stderr
    genuine, forged = json.loads(sent.stdout)["bundles"]
    assert genuine["fault"] is None
    assert "is to be turned away (4xx)" in forged["fault"]
