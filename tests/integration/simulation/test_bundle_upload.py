"""What an aggregation server answers to a camera that is played, and whether that will do."""

import json
import time
from datetime import UTC, datetime

import httpx2
import pytest

from birthmark_sma.device import Delivery
from birthmark_sma.protocol.bundle import parse_bundle
from birthmark_sma.simulation.aggregation import bundle_upload
from birthmark_sma.simulation.aggregation.bundle_upload import Answer, fault_in
from birthmark_sma.simulation.expected_outcomes import (
    ASSUMED,
    BY_ONE_CAMERA,
    Case,
    Outcome,
    right_endings,
)
from tests.support.cameras.bundles import bundle_of
from tests.support.http.faulty_server import Behaviour, FaultyServer, Visit
from tests.support.pki.chains import device_key, sound_chain
from tests.support.programs.commands import sma
from tests.support.programs.running import Running

GOOD = right_endings(Case.GENUINE, ASSUMED)
FORGED = right_endings(Case.FORGED_SIGNATURE, ASSUMED)
TAMPERED = right_endings(Case.TAMPERED_TAG, ASSUMED)
REPLAYED = right_endings(Case.REPLAYED_BUNDLE, ASSUMED)


@pytest.mark.parametrize("case", BY_ONE_CAMERA)
def test_what_says_nothing_of_the_bundle_will_never_do(case: Case) -> None:
    """Threat 19's kin: nor does the right ending in the body of a 500, or of a login page."""
    right = right_endings(case, ASSUMED)
    for ending in (None, *right):
        fault = fault_in(Answer(500, Delivery.LATER, ending), right)
        assert fault is not None
        assert "neither takes the bundle" in fault


@pytest.mark.parametrize(
    ("right", "deliveries"),
    [
        (GOOD, {Delivery.TAKEN}),
        (FORGED, {Delivery.REFUSED}),
        (TAMPERED, {Delivery.TAKEN, Delivery.REFUSED}),
        (REPLAYED, {Delivery.TAKEN, Delivery.REFUSED}),
    ],
)
def test_a_delivery_alone(right: frozenset[Outcome], deliveries: set[Delivery]) -> None:
    for each in Delivery:
        assert (fault_in(Answer(200, each), right) is None) is (each in deliveries), each


def test_an_ending_counts_more_than_taken_or_turned_away() -> None:
    taken, refused = Delivery.TAKEN, Delivery.REFUSED
    assert fault_in(Answer(422, refused, Outcome.WRONG_SIGNATURE), FORGED) is None
    assert fault_in(Answer(200, taken, Outcome.WRONG_SIGNATURE), FORGED) is None
    assert fault_in(Answer(409, taken, Outcome.DUPLICATE), REPLAYED) is None
    assert fault_in(Answer(200, taken, Outcome.PASS), TAMPERED) == "it should be FAIL"
    assert "the bundle is good but was not taken" in str(
        fault_in(Answer(422, refused, Outcome.PASS), GOOD)
    )
    assert fault_in(Answer(None, detail="refused"), GOOD) == "refused"


@pytest.mark.parametrize(
    ("patience", "answer", "told"),
    [
        (0.3, lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 999, 0.02), "too long"),
        (30, lambda visit: visit.answer(b" " * 65_537), "too large"),
    ],
)
def test_an_answer_without_end_is_none(
    monkeypatch: pytest.MonkeyPatch, patience: float, answer: Behaviour, told: str
) -> None:
    """Whoever drips or floods holds no simulation up."""
    monkeypatch.setattr(bundle_upload, "SECONDS", patience)
    sound, now = sound_chain(), datetime.now(UTC)
    key = device_key("ec-p256")
    bundle = bundle_of(sound.leaf, sound.intermediates[0], key, captured_at=now)
    begun = time.monotonic()
    with httpx2.Client() as client, FaultyServer(answer) as server:
        got = bundle_upload.deliver(client, server.url, bundle)
    assert got.status is None
    assert told in got.detail
    assert time.monotonic() - begun < 5


def test_a_server_that_takes_everything_is_found_out(running: Running) -> None:
    """It says no ending, and 202 to each: that will not do for a forged signature."""

    def take(visit: Visit) -> None:
        bundle = parse_bundle(visit.request.partition(b"\r\n\r\n")[2])
        visit.answer({"bundle_id": bundle.bundle_id}, 202)

    with FaultyServer(take) as server:
        sent = sma(
            "simulate", "camera", running.server.url, "--to", f"{server.url}/bundles",
            "--case", "genuine", "--case", "forged-signature", "--pictures", "2",
            "--interval", "0", "--json", environ=running.environ,
        )  # fmt: skip
    assert sent.returncode == 1
    assert "1 of 2 bundles got a wrong response" in sent.stderr
    genuine, forged = json.loads(sent.stdout)["bundles"]
    assert genuine["fault"] is None
    assert "must be refused (400" in forged["fault"]
