"""Many at once: provisions that collide, several processes, and a loop that must not stop."""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.counting import assert_the_chains_at_verify
from tests.support.programs.load import (
    Answer,
    Connection,
    ask_all,
    post_all,
    validate_all,
)
from tests.support.programs.running import (
    frozen,
    new_serial,
    resident_megabytes,
    start,
    wait_until,
    workers_of,
)
from tests.support.programs.server import SMA

MEMORY_MEGABYTES = 150
PROVISIONS = 150


def answered(answers: list[Answer | None]) -> list[Answer]:
    """The answers, all of which must have come."""
    assert None not in answers
    return [answer for answer in answers if answer is not None]


def test_two_hundred_provisions_of_which_twenty_for_one_serial(start_server: Start) -> None:
    """Threats 8 and 11. Threat 8: of twenty for one serial one wins, nineteen get 409, none 5xx.

    Threat 11: all devices on a table were given the same master key.
    """
    running = start_server()
    bodies = [provision_body(f"device-{n:03}") for n in range(180)]
    bodies += [provision_body("contested") for _ in range(20)]
    random.shuffle(bodies)
    answers = answered(post_all(running.server.url, PROVISION, bodies, connections=200))

    assert Counter(answer.status for answer in answers) == {200: 181, 409: 19}
    assert running.count("registered_devices") == 181
    lost = [
        body["device_serial"] for body, a in zip(bodies, answers, strict=True) if a.status == 409
    ]
    assert set(lost) == {"contested"}
    given = [answer.json() for answer in answers if answer.status == 200]
    assert len({one["provisioning_id"] for one in given}) == 181
    keys: dict[str, set[str]] = {}
    for one in given:
        for table, key in one["table_keys"].items():
            keys.setdefault(table, set()).add(key)
    assert len(keys) < 3 * 181, "no two devices share a table, which should not happen"
    assert all(len(different) == 1 for different in keys.values())
    # Each of the devices that were told so can make tokens; the losers changed nothing.
    cameras = [
        Camera.of(body["device_serial"], answer.json())
        for body, answer in zip(bodies, answers, strict=True)
        if answer.status == 200
    ]
    verdicts = answered(validate_all(running.server.url, [camera.token() for camera in cameras]))
    assert {verdict.json()["validation_result"] for verdict in verdicts} == {"PASS"}


def test_memory_stays_small_after_thousands_of_validations(start_server: Start) -> None:
    """The server is resident in less than 150 MB, 2,500 open key tables included."""
    running = start_server(program=SMA, SMA_TABLES="2500")
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
    tokens = [camera.token() for _ in range(4_000)]
    answers = answered(validate_all(running.server.url, tokens, connections=32))
    assert {answer.status for answer in answers} == {200}
    assert resident_megabytes(running.server.process.pid) < MEMORY_MEGABYTES


def test_signing_with_rsa_4096_does_not_stop_the_loop(tmp_path: Path) -> None:
    """Threat 24: /health/live answers at once while devices queue for signatures.

    If the loop signed, a probe would wait for whoever is in the queue, as long as they do.
    """
    running = start(tmp_path / "data", "sqlite:", SMA_CA_KEY_TYPE="rsa-4096", **FEW_TABLES)
    bodies = [json.dumps(provision_body(f"device-{n}")).encode() for n in range(PROVISIONS)]

    async def watch(under_load: "asyncio.Task[list[Answer | None]]") -> list[float]:
        connection = await Connection.open(running.server.url)
        times = []
        while not under_load.done():
            answer = await connection.ask("GET", "/health/live")
            assert answer.status == 200
            times.append(answer.seconds)
            await asyncio.sleep(0.01)
        connection.close()
        return times

    async def load_and_watch() -> tuple[list[Answer | None], list[float]]:
        under_load = asyncio.create_task(
            ask_all(running.server.url, PROVISION, bodies, connections=32)
        )
        times = await watch(under_load)
        return await under_load, times

    with running.server:
        answers, times = asyncio.run(load_and_watch())
    assert {answer.status for answer in answered(answers)} == {200}
    assert len(times) >= 10, "the load was over before anything could be measured"
    queued = statistics.median(answer.seconds for answer in answered(answers))
    assert statistics.median(times) < queued / 4


def _verdict(client: httpx2.Client, camera: Camera) -> str:
    """A verdict, over a new connection."""
    response = client.post(VALIDATE, json=wire(camera.token()), headers={"Connection": "close"})
    assert response.status_code == 200, response.text
    return str(response.json()["validation_result"])


def test_service_goes_on_when_a_worker_is_killed(start_server: Start) -> None:
    """Two workers serve each other's devices; one that dies is replaced."""
    running = start_server("--workers", "2")
    with running.client() as client:
        before = workers_of(running)
        assert len(before) == 2
        cameras = [
            Camera.of(body["device_serial"], answer.json())
            for body in [provision_body(new_serial()) for _ in range(6)]
            for answer in answered(post_all(running.server.url, PROVISION, [body]))
        ]
        assert {_verdict(client, camera) for camera in cameras for _ in range(3)} == {"PASS"}
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in workers_of(running), 10)
        assert {_verdict(client, camera) for camera in cameras for _ in range(3)} == {"PASS"}
        wait_until(lambda: len(workers_of(running)) == 2, 30)
        assert {_verdict(client, camera) for camera in cameras for _ in range(3)} == {"PASS"}
    assert running.server.terminate() == 0
    assert running.count("validation_history") == 54
    assert_the_chains_at_verify(running.database_url)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_that_dies_while_it_is_asked_how_it_is(start_server: Start) -> None:
    """It is replaced at once, and a signal is heard: nobody waits for its answer."""
    running = start_server("--workers", "2")
    victim = workers_of(running)[0]
    with frozen([victim]):
        time.sleep(1.2)  # it is asked twice a second
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(running)) - {victim}) == 2, 15)
    assert running.server.terminate() == 0


def test_two_servers_on_one_database(start_server: Start) -> None:
    """Each provisions and validates at once, and knows the other's devices without delay."""
    first, second = start_server(), start_server()
    urls = (first.server.url, second.server.url)
    assert urls[0] != urls[1]

    async def provision_on_both() -> list[list[Answer | None]]:
        bodies = [
            [json.dumps(provision_body(f"{server}-{n}")).encode() for n in range(20)]
            for server in range(2)
        ]
        # The same serials on both servers at once, as well.
        for each in bodies:
            each += [json.dumps(provision_body(f"both-{n}")).encode() for n in range(10)]
        return await asyncio.gather(
            *(ask_all(url, PROVISION, each) for url, each in zip(urls, bodies, strict=True))
        )

    both = [answered(answers) for answers in asyncio.run(provision_on_both())]
    assert Counter(a.status for answers in both for a in answers) == {200: 50, 409: 10}
    assert first.count("registered_devices") == 50
    for answers, other in zip(both, reversed(urls), strict=True):
        cameras = [Camera.of("", answer.json()) for answer in answers if answer.status == 200]
        verdicts = answered(validate_all(other, [camera.token() for camera in cameras]))
        assert {verdict.json()["validation_result"] for verdict in verdicts} == {"PASS"}
    assert first.count("validation_history") == 50
    assert_the_chains_at_verify(first.database_url)
