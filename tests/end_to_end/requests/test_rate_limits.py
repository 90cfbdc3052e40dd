"""Rate limits of one server of two processes, with a real Redis, and when that Redis is killed."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.redis import Redis
from tests.support.programs.load import validate_all
from tests.support.programs.running import Running, new_serial, wait_until

LIMIT = 100
LOST = "until it answers, each server counts by itself"
FOUND = "The store for rate limits answers again"
ATTEMPTS = 5


@pytest.fixture
def two_processes(start_server: Start, own_redis: Redis) -> Running:
    """A server of two processes that count in one Redis."""
    return start_server(
        *("--workers", "2", "--rate-validate", f"{LIMIT}/hour", "--rate-failures", "10/hour"),
        SMA_RATE_STORE=own_redis.url,
    )


@pytest.fixture
def camera(two_processes: Running) -> Camera:
    """A provisioned camera."""
    with two_processes.client("127.0.4.1") as client:
        return Camera.provisioned(client, new_serial())


def ask_from(running: Running, address: str, body: dict[str, Any], times: int) -> list[int]:
    """Send the same from one address, each time on a new connection: any process may get it."""
    place = urlsplit(running.server.url)
    content = json.dumps(body)

    def ask(_: int) -> int:
        assert place.hostname is not None
        connection = http.client.HTTPConnection(
            place.hostname, place.port, timeout=30, source_address=(address, 0)
        )
        connection.request("POST", VALIDATE, content, {"Content-Type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, range(times)))


def wait_for(running: Running, words: str, times: int) -> None:
    """Wait until the log has these words so often."""
    wait_until(lambda: running.server.said().count(words) >= times, 20)


def passed_while_shared(running: Running, body: dict[str, Any], network: str) -> int:
    """How many of twice the limit pass while both processes reach Redis all the time.

    On a machine that is too busy they may lose it for a moment: then another address tries again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        wait_for(running, FOUND, running.server.said().count(LOST))
        before = running.server.said().count(LOST)
        statuses = ask_from(running, f"{network}.{attempt}", body, 2 * LIMIT)
        if running.server.said().count(LOST) == before:
            assert set(statuses) == {200, 429}
            return statuses.count(200)
    raise AssertionError(f"Redis was lost in each of {ATTEMPTS} attempts")


def test_two_processes_hold_one_limit_and_survive_their_redis(
    two_processes: Running, own_redis: Redis, camera: Camera
) -> None:
    """Threats 19 and 23: exactly as many as allowed; no answer is lost or a FAIL when Redis is
    killed under load, and the processes then hold the limit in their own memory."""
    body = wire(camera.token())
    assert passed_while_shared(two_processes, body, "127.0.5") == LIMIT
    found = two_processes.server.said().count(FOUND)

    def kill_in_the_middle(answered: int) -> None:
        if answered == LIMIT // 2:
            threading.Thread(target=own_redis.kill).start()

    tokens = [camera.token() for _ in range(4 * LIMIT)]
    answers = validate_all(
        two_processes.server.url, tokens, connections=16, note=kill_in_the_middle
    )
    told = [each for each in answers if each is not None]
    assert len(told) == 4 * LIMIT
    assert {each.status for each in told} == {200, 429}
    passed = [each for each in told if each.status == 200]
    assert LIMIT <= len(passed) <= 2 * LIMIT
    assert {each.json()["validation_result"] for each in passed} == {"PASS"}
    assert not [each for each in told if each.status == 429 and b"FAIL" in each.body]

    alone = ask_from(two_processes, "127.0.4.2", body, 4 * LIMIT)
    assert alone.count(200) == LIMIT  # the memory of both processes is the same
    wait_for(two_processes, LOST, found + 2)

    own_redis.start()
    wait_for(two_processes, FOUND, found + 2)
    assert passed_while_shared(two_processes, body, "127.0.6") == LIMIT
    said = two_processes.server.said()
    assert said.count(LOST) == said.count(FOUND)
    assert own_redis.password not in said
    assert "set SMA_RATE_STORE to a Redis" not in said


def test_failures_slow_a_caller_down_on_both_processes(
    two_processes: Running, camera: Camera
) -> None:
    """Whichever process gave the FAILs; and a good token waits as well."""
    good = wire(camera.token())
    bad = {**good, "nonce": "0" * 24}
    for attempt in range(1, ATTEMPTS + 1):  # see passed_while_shared
        wait_for(two_processes, FOUND, two_processes.server.said().count(LOST))
        before = two_processes.server.said().count(LOST)
        address = f"127.0.7.{attempt}"
        statuses = [ask_from(two_processes, address, bad, 1)[0] for _ in range(40)]
        assert 10 <= statuses.count(200) <= 20  # no more than each process by itself would allow

        def settled(address: str = address, before: int = before) -> bool:
            lost = two_processes.server.said().count(LOST) > before
            return lost or ask_from(two_processes, address, good, 20) == [429] * 20

        wait_until(settled, 10)
        if two_processes.server.said().count(LOST) == before:
            break
    else:
        raise AssertionError(f"Redis was lost in each of {ATTEMPTS} attempts")
    assert ask_from(two_processes, "127.0.4.5", good, 1) == [200]


def test_a_server_starts_without_its_redis(start_server: Start, own_redis: Redis) -> None:
    """And says so once."""
    own_redis.kill()
    running = start_server("--rate-validate", "5/hour", SMA_RATE_STORE=own_redis.url)
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        body = wire(camera.token())
        statuses = [client.post(VALIDATE, json=body).status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert running.server.said().count(LOST) == 1
    own_redis.start()
    wait_for(running, FOUND, 1)
    assert running.server.terminate() == 0
