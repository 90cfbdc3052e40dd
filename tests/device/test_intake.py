"""What each answer of an aggregation server means to a camera: the contract, section 10."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from birthmark_sma.device import Delivery, Intake, Later
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.protocol.bundle import Bundle, parse_bundle
from tests.device.conftest import StartCamera
from tests.support.http.faulty_server import (
    Behaviour,
    FaultyServer,
    Visit,
)
from tests.support.http.ports import closed_port


def body_of(visit: Visit) -> bytes:
    """What the camera sent."""
    return visit.request.partition(b"\r\n\r\n")[2]


def naming(status: int = 200, *, headers: dict[str, str] | None = None, **fields: Any) -> Behaviour:
    """Answer with the id of the bundle, or with something else."""

    def behave(visit: Visit) -> None:
        known = {"bundle_id": parse_bundle(body_of(visit)).bundle_id}
        visit.answer(known | fields, status, **(headers or {}))

    return behave


def saying(body: bytes | dict[str, Any], status: int = 200, **headers: str) -> Behaviour:
    """Answer with this body."""
    return lambda visit: visit.answer(body, status, **headers)


THEN = datetime(2026, 1, 31, 12, tzinfo=UTC)
DATES = {"Date": format_datetime(THEN, usegmt=True)}
IN_90_SECONDS = format_datetime(THEN + timedelta(seconds=90), usegmt=True)

ANSWERS: dict[str, tuple[Behaviour, Delivery | Later]] = {
    "taken": (naming(), Delivery.TAKEN),
    "created": (naming(201, ending="PASS"), Delivery.TAKEN),
    "accepted": (naming(202), Delivery.TAKEN),
    "taken before": (naming(409), Delivery.TAKEN),
    "a login page": (saying(b"<html>"), Delivery.LATER),
    "nothing said": (saying({}), Delivery.LATER),
    "a list": (saying(b"[]"), Delivery.LATER),
    "another bundle": (naming(bundle_id="00" * 32), Delivery.LATER),
    "no text": (naming(bundle_id=1), Delivery.LATER),
    "deep JSON": (saying(b"[" * 60_000), Delivery.LATER),
    "409 for another reason": (saying({"detail": "Busy."}, 409), Delivery.LATER),
    "another 2xx": (naming(203), Delivery.LATER),
    "partial": (naming(206), Delivery.LATER),
    "redirected": (naming(302), Delivery.LATER),
    **{f"{status}": (naming(status), Delivery.REFUSED) for status in (400, 413, 415, 422)},
    **{
        f"{status}": (naming(status), Delivery.LATER)
        for status in (401, 403, 404, 405, 407, 408, 410, 421, 429, 500, 502, 503, 504)
    },
    "429 for a while": (saying({}, 429, Retry_After="17"), Later(17)),
    "503 for a while": (saying({}, 503, Retry_After="3"), Later(3)),
    "503 until then": (saying({}, 503, Retry_After=IN_90_SECONDS, **DATES), Later(90)),
    "a date without a date": (saying({}, 503, Retry_After=IN_90_SECONDS), Delivery.LATER),
    "503 with nonsense": (saying({}, 503, Retry_After="soon"), Delivery.LATER),
    "closed": (lambda visit: visit.connection.close(), Delivery.LATER),
    "reset": (lambda visit: visit.reset(), Delivery.LATER),
    "no HTTP": (lambda visit: visit.send(b"\0" * 99), Delivery.LATER),
}


@pytest.fixture
def bundle(start: StartCamera) -> Bundle:
    """A bundle of a picture."""
    return start().capture(b"a picture")


Answered = Callable[[Behaviour], Delivery | Later]


@pytest.fixture
def answered(bundle: Bundle) -> Answered:
    """Send the bundle to a server that behaves so."""

    def send(behaviour: Behaviour) -> Delivery | Later:
        with FaultyServer(behaviour) as server, Intake(f"{server.url}/bundles") as intake:
            return intake(bundle)

    return send


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_answer_means(answered: Answered, name: str) -> None:
    """Threat 50; and threat 19's kin: no 200 of a Wi-Fi's login page makes a picture vanish."""
    behaviour, delivery = ANSWERS[name]
    assert answered(behaviour) == delivery


def test_nobody_listens(bundle: Bundle) -> None:
    with Intake(f"http://127.0.0.1:{closed_port()}/bundles") as intake:
        assert intake(bundle) is Delivery.LATER


def test_what_is_sent(bundle: Bundle) -> None:
    """The bundle, declared as JSON; and what a client of one's own adds."""
    with FaultyServer(naming()) as server:
        client = httpx2.Client(headers={"Authorization": "Bearer key"})
        with Intake(f"{server.url}/bundles", client=client) as intake:
            assert intake(bundle) is Delivery.TAKEN
        [visit] = server.visits
    assert visit.request.startswith(b"POST /bundles HTTP/1.1\r\n")
    assert visit.headers["content-type"] == "application/json"
    assert visit.headers["authorization"] == "Bearer key"
    assert body_of(visit) == bundle.to_json()


@pytest.mark.parametrize(
    "url", ["http://aggregator.example/", "http://192.0.2.1/", "x", "ftp://[::1]", "https://", "["]
)
def test_bundles_go_out_over_https(url: str) -> None:
    """Over http anybody on the way could say that a bundle was taken."""
    with pytest.raises(ConfigurationError, match="URL"):
        Intake(url)
    for good in ("https://aggregator.example/", "http://[::1]:8000/", "http://localhost/"):
        assert Intake(good)


ENDLESS: dict[str, tuple[float, Behaviour]] = {
    "dripping": (0.3, lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 999, 0.02)),
    "flooding": (30, naming(more="x" * 65_536)),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_ends(bundle: Bundle, kind: str) -> None:
    """Also after one that left the connection open; the bundle stays."""
    seconds, behaviour = ENDLESS[kind]
    begun = time.monotonic()
    with (
        FaultyServer(naming(), behaviour) as server,
        Intake(server.url, answer_seconds=seconds) as intake,
    ):
        assert [intake(bundle) for _ in range(2)] == [Delivery.TAKEN, Delivery.LATER]
    assert time.monotonic() - begun < 5


def test_what_an_answer_says_of_the_time_is_heard(bundle: Bundle) -> None:
    """Also one that refuses: who sent it is known by TLS."""
    heard: list[tuple[datetime, str]] = []
    with (
        FaultyServer(saying({}, 422, **DATES), saying({}, 422)) as server,
        Intake(server.url, hear_time=lambda *each: heard.append(each)) as intake,
    ):
        assert [intake(bundle) for _ in range(2)] == [Delivery.REFUSED] * 2
    assert heard == [(THEN, "127.0.0.1")]


def test_a_server_that_answers_403_or_404_stops_nothing(start: StartCamera) -> None:
    """Threat 50: the queue goes on behind the bundle for which it does so, at once."""
    camera = start()
    bundles = [camera.capture(bytes([n])) for n in range(4)]
    for bundle in bundles:
        camera.queue.put(bundle)

    def behave(visit: Visit) -> None:
        bad = body_of(visit) in {bundles[0].to_json(), bundles[1].to_json()}
        naming(404 if bad else 200)(visit)

    with FaultyServer(behave) as server, camera.intake(server.url) as intake:
        assert camera.queue.drain(intake) == 2
    assert len(camera.queue) == 2
