"""With `refuse-same-caller`, an answer that nobody got is given when the token comes again."""

import json
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.redis import Redis
from tests.support.problems import assert_problem
from tests.support.programs.running import (
    Running,
    Servers,
    new_serial,
    start,
    wait_until,
)

BATCH = f"{VALIDATE}/batch"
REFUSING = ("--replay", "refuse-same-caller")
IMPATIENT = {"SMA_ANSWER_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def refusing_servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """Servers that refuse replays, one for each kind of database."""
    folder = tmp_path_factory.mktemp("refusing")
    shared = Servers(folder, postgres_admin_url, *REFUSING, **FEW_TABLES)
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def impatient_servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """The same, but they wait for a second at most."""
    folder = tmp_path_factory.mktemp("impatient")
    shared = Servers(folder, postgres_admin_url, *REFUSING, **IMPATIENT, **FEW_TABLES)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def refusing(request: pytest.FixtureRequest, refusing_servers: Servers) -> Running:
    """A server that refuses replays, which tests share."""
    return refusing_servers.get(request.param)


@pytest.fixture(params=["sqlite", "postgresql"])
def impatient(request: pytest.FixtureRequest, impatient_servers: Servers) -> Running:
    """A server that refuses replays and does not wait for long, which tests share."""
    return impatient_servers.get(request.param)


@contextmanager
def locked(running: Running) -> Iterator[None]:
    """Another program holds what every verdict is written to."""
    if running.uses_sqlite:
        file = running.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    with psycopg.connect(running.database_url) as other:
        other.execute("LOCK TABLE validation_history IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


def new_camera(running: Running) -> Camera:
    with running.client() as client:
        return Camera.provisioned(client, new_serial())


def times_recorded(running: Running, token: CameraToken) -> int:
    """How often a token stands in the audit trail."""
    return len(running.audit_rows(token))


def assert_given_once(client: httpx2.Client, token: CameraToken) -> None:
    """The verdict comes now, and no further time."""
    answer = client.post(VALIDATE, json=wire(token))
    assert answer.status_code == 200, answer.text
    assert answer.json()["validation_result"] == "PASS"
    assert_problem(client.post(VALIDATE, json=wire(token)), 409)


def test_a_token_that_got_503_gets_its_verdict_later(impatient: Running) -> None:
    """Threats 19 and 49: whether it was settled after all or not, it is asked again as told.

    Those that waited behind it are not settled: nobody waits for them any more.
    """
    running = impatient
    camera = new_camera(running)
    tokens = [camera.token() for _ in range(4)]

    def recorded() -> int:
        return sum(times_recorded(running, token) for token in tokens)

    with running.client() as client:
        with locked(running):
            for token in tokens:
                problem = assert_problem(client.post(VALIDATE, json=wire(token)), 503)
                assert "in time" in problem["detail"]
        # The one whose statement waits when the lock goes. A statement waits for 5 seconds at most.
        wait_until(lambda: recorded() == 1 or running.uses_sqlite, 10)
        assert recorded() <= 1
        for token in tokens:
            assert_given_once(client, token)


def test_a_batch_that_got_503_gets_its_verdicts_later(impatient: Running) -> None:
    """Threat 19: each element once, and in the batch that asks again, or alone."""
    running = impatient
    camera = new_camera(running)
    tokens = [camera.token() for _ in range(3)]
    body = {"tokens": [wire(each) for each in tokens]}
    with running.client() as client:
        with locked(running):
            assert_problem(client.post(BATCH, json=body), 503)
        assert_given_once(client, tokens[0])
        results = client.post(BATCH, json=body).json()["results"]
    told = [each.get("validation_result") for each in results]
    assert told == [None, "PASS", "PASS"]


@pytest.mark.parametrize("number", [1, 3], ids=["alone", "in a batch"])
def test_another_process_gives_the_verdict(postgres_url: str, tmp_path: Path, number: int) -> None:
    """Threat 19: asked again at another server while the first one still waits for its commit.

    It gives the verdict, or says 503 where it cannot know yet whether the caller was answered.
    """
    first = start(tmp_path / "first", postgres_url, *REFUSING, **IMPATIENT, **FEW_TABLES)
    second = start(tmp_path / "second", postgres_url, *REFUSING)
    with first.server, second.server, first.client() as one, second.client() as two:
        camera = Camera.provisioned(one, new_serial())
        tokens = [camera.token() for _ in range(number)]
        with locked(first):
            assert_problem(one.post(VALIDATE, json=wire(tokens[0])), 503)
            waiting = post_and_stay(second, *tokens)
            time.sleep(1.5)  # longer than a transaction that leaves no doubt
        answer = waiting.recv(65_536)
        waiting.close()
        if answer.startswith(b"HTTP/1.1 503"):  # the first one had begun its commit before
            # Retry-After: 1 leaves it this time. Here the clock does not decide.
            wait_until(lambda: first.count("lost_answers") == number, 10)
            for token in tokens:
                assert_given_once(two, token)
            return
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b'"PASS"') == number
        for token in tokens:
            assert_problem(two.post(VALIDATE, json=wire(token)), 409)


def post_and_stay(running: Running, *tokens: CameraToken, chunked: bool = False) -> socket.socket:
    """Send tokens, one alone and several as a batch, and return the connection."""
    where = urlsplit(running.server.url)
    assert where.hostname is not None
    connection = socket.create_connection((where.hostname, where.port or 80), timeout=30)
    path, value = (VALIDATE, wire(tokens[0])) if len(tokens) == 1 else (BATCH, _batch(tokens))
    body = json.dumps(value).encode()
    size = b"Content-Length: %d" % len(body)
    if chunked:
        size, body = b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    connection.sendall(
        b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
        b"%b\r\n\r\n%b" % (path.encode(), where.netloc.encode(), size, body)
    )
    return connection


def _batch(tokens: tuple[CameraToken, ...]) -> dict[str, Any]:
    return {"tokens": [wire(each) for each in tokens]}


def let_it_read(running: Running) -> None:
    """Return once the server has read everything that was sent to it before.

    Its event loop takes what has arrived in turn, so later requests are answered afterwards.
    """
    for _ in range(3):
        with running.client() as client:
            assert client.get("/health/live").status_code == 200


def leave(connection: socket.socket, *, reset: bool) -> None:
    """Close a connection, as a program that gave up does or one that was killed."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_whoever_leaves_gets_the_verdict_later(refusing: Running, reset: bool) -> None:
    """A caller that left while its token was settled, or a batch of its, did not get the answer."""
    running, said_before = refusing, len(refusing.server.said())
    lost_before = running.count("lost_answers")
    camera = new_camera(running)
    alone, *together = (camera.token() for _ in range(4))
    with locked(running):
        connections = [post_and_stay(running, alone)]
        let_it_read(running)
        connections.append(post_and_stay(running, *together))
        let_it_read(running)
        for connection in connections:
            leave(connection, reset=reset)
        let_it_read(running)
    with running.client() as client:
        if not reset:  # these are answered, as they may have closed one direction alone
            wait_until(lambda: times_recorded(running, together[0]) == 1, 10)
            wait_until(lambda: running.count("lost_answers") == lost_before + 4, 10)
        for token in (alone, *together):
            assert_given_once(client, token)
    assert running.count("lost_answers") == lost_before
    assert "Traceback" not in running.server.said()[said_before:]


def test_whoever_reset_before_it_began_is_not_settled(start_server: Start) -> None:
    """Threat 49: what waits in the pool for a caller that is gone costs nothing any more."""
    running = start_server(*REFUSING)
    camera = new_camera(running)
    tokens = [camera.token() for _ in range(5)]
    with locked(running):
        staying = post_and_stay(running, tokens[0])
        let_it_read(running)
        for token in tokens[1:]:
            leave(post_and_stay(running, token), reset=False)
            leave(post_and_stay(running, token), reset=True)
        let_it_read(running)
    assert b"200 OK" in staying.recv(65_536)
    staying.close()
    wait_until(lambda: times_recorded(running, tokens[1]) == 1, 10)
    assert [times_recorded(running, token) for token in tokens] == [1] * 5


@pytest.mark.parametrize("chunked", [False, True], ids=["direct", "chunked"])
def test_whoever_leaves_before_other_processes_agreed_is_not_settled(
    start_server: Start, own_redis: Redis, chunked: bool
) -> None:
    """Threats 36 and 49: a token that waits for the FAILs of others is not offered any more."""
    running = start_server(*REFUSING, "--rate-failures", "1/hour", SMA_RATE_STORE=own_redis.url)
    camera = new_camera(running)
    first, second = camera.token(), camera.token()
    with locked(running):
        staying = post_and_stay(running, first)
        let_it_read(running)
        leave(post_and_stay(running, second, chunked=chunked), reset=True)
        let_it_read(running)
    assert b"200 OK" in staying.recv(65_536)
    staying.close()
    time.sleep(0.5)
    assert times_recorded(running, second) == 0
    with running.client() as client:
        assert_given_once(client, second)
    said = running.server.said()
    assert "Traceback" not in said
    assert "never retrieved" not in said


def test_whoever_leaves_a_chunked_request_leaves_no_error(refusing: Running) -> None:
    """Threat 31: the log says nothing of a caller that is gone."""
    running, said_before = refusing, len(refusing.server.said())
    camera = new_camera(running)
    token = camera.token()
    with locked(running):
        leave(post_and_stay(running, token, chunked=True), reset=True)
        let_it_read(running)
    with running.client() as client:
        for _ in range(50):
            client.get("/stats")
        assert_given_once(client, token)
    assert "never retrieved" not in running.server.said()[said_before:]
    assert "ASGI" not in running.server.said()[said_before:]


def test_answers_that_arrive_leave_no_trace(refusing: Running) -> None:
    """An answer that was sent is no lost one, however its connection ends."""
    running = refusing
    lost_before = running.count("lost_answers")
    camera = new_camera(running)
    token = camera.token()
    connection = post_and_stay(running, token)
    assert b"200 OK" in connection.recv(65_536)
    leave(connection, reset=True)
    let_it_read(running)
    with running.client() as client:
        assert_problem(client.post(VALIDATE, json=wire(token)), 409)
    assert running.count("lost_answers") == lost_before
