"""What was answered is recorded: through SIGKILL, SIGTERM, and a database that cannot write."""

import json
import random
import resource
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.counting import assert_the_chains_at_verify
from tests.support.problems import assert_problem
from tests.support.programs.load import Answer, validate_all
from tests.support.programs.running import Running, new_serial, start, wait_until
from tests.support.soak import times

ROUNDS = times(3, 10)
TOKENS_A_ROUND = 850
ANSWERS_BEFORE_THE_KILL = (500, 800)
ANSWERS_IN_ALL = ROUNDS * ANSWERS_BEFORE_THE_KILL[0]


def mixed_tokens(camera: Camera, number: int) -> list[CameraToken]:
    """Tokens that get PASS, FAIL and 400, each of them unlike every other."""
    stranger = bytes(range(32))
    makers = (
        camera.token,
        camera.token,
        lambda: camera.token(nuc_hash=stranger),
        lambda: camera.token(key_index=123_456),
    )
    return [makers[n % len(makers)]() for n in range(number)]


def verdict_of(answer: Answer) -> str:
    """The verdict that an answer carries: only 200 and 400 have one."""
    assert answer.status in {200, 400}, answer.body
    return str(answer.json()["validation_result"])


def assert_recorded(
    running: Running, tokens: list[CameraToken], answers: list[Answer | None]
) -> int:
    """Every answer that was received stands in the audit trail, which verifies; return how many."""
    recorded = {
        bytes(sealed): result
        for sealed, result in running.rows(
            "SELECT encrypted_nuc_hash, validation_result FROM validation_history"
        )
    }
    received = [(t, a) for t, a in zip(tokens, answers, strict=True) if a is not None]
    missing = [token for token, _ in received if token.encrypted_nuc_hash not in recorded]
    assert not missing, f"{len(missing)} of {len(received)} answers are not recorded"
    for token, answer in received:
        assert recorded[token.encrypted_nuc_hash] == verdict_of(answer)
    assert_the_chains_at_verify(running.database_url)
    return len(received)


@pytest.mark.soak
def test_nothing_acknowledged_is_missing_after_sigkill(start_server: Start) -> None:
    """Threat 30: killed in the middle of validations, several times over; ten times in a soak.

    Every answer that a client received has its audit row, with the same verdict, once a new server
    is up on the same data.
    """
    running = start_server()
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
    received = 0
    for _ in range(ROUNDS):
        server = running.server
        deadline = random.randint(*ANSWERS_BEFORE_THE_KILL)

        def kill_once(answered: int, deadline: int = deadline, running: Running = running) -> None:
            if answered == deadline:
                running.server.process.send_signal(signal.SIGKILL)

        tokens = mixed_tokens(camera, TOKENS_A_ROUND)
        answers = validate_all(server.url, tokens, connections=12, note=kill_once)
        assert server.process.wait(30) == -signal.SIGKILL
        server.close()
        assert None in answers, "the server had answered everything before it was killed"
        running = start_server()
        received += assert_recorded(running, tokens, answers)
    assert received >= ANSWERS_IN_ALL
    with running.client() as client:
        answer = client.post(VALIDATE, json=wire(camera.token())).json()
    assert answer["validation_result"] == "PASS"


def test_a_provision_that_was_answered_survives_sigkill(start_server: Start) -> None:
    """Threats 8 and 30. Threat 8: whoever lost the answer gets it again from the next server."""
    running = start_server()
    bodies = [provision_body(new_serial()) for _ in range(12)]
    with running.client() as client:
        first = [
            client.post(PROVISION, json=body, headers={"Idempotency-Key": body["device_serial"]})
            for body in bodies
        ]
    running.server.kill()
    running.server.close()
    running = start_server()
    with running.client() as client:
        for body, response in zip(bodies, first, strict=True):
            key = {"Idempotency-Key": body["device_serial"]}
            again = client.post(PROVISION, json=body, headers=key)
            assert again.status_code == 200
            assert again.content == response.content


def test_sigterm_answers_what_was_accepted(start_server: Start) -> None:
    """Threat 31: drain, commit, answer, then leave with exit code 0."""
    running = start_server()
    server = running.server
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
    tokens = mixed_tokens(camera, 3_000)
    stopped = threading.Event()

    def stop_once(answered: int) -> None:
        if answered == 400:
            server.process.send_signal(signal.SIGTERM)
            stopped.set()

    answers = validate_all(server.url, tokens, connections=24, note=stop_once)
    assert stopped.is_set()
    assert server.process.wait(40) == 0
    received = assert_recorded(running, tokens, answers)
    assert received >= 400
    # Each connection had one request under way, and none of these was dropped.
    assert running.count("validation_history") == received
    assert "Traceback" not in server.said()
    assert server.said().rstrip().endswith("Stopped. All answers are recorded.")


def test_an_idle_server_stops_at_once(start_server: Start) -> None:
    """Threat 31: a connection that is kept alive does not hold the server up."""
    running = start_server()
    with running.client() as client:
        client.get("/health")
        began = time.monotonic()
        assert running.server.terminate() == 0
    assert time.monotonic() - began < 5


# --- SQLite that cannot write


def assert_outage_never_fail(running: Running, camera: Camera) -> None:
    """Validation and provisioning say 503 with Retry-After, and there is no word of FAIL."""
    with running.client() as client:
        for token in (camera.token(), camera.token(nuc_hash=bytes(32))):
            response = client.post(VALIDATE, json=wire(token))
            assert_problem(response, 503)
            assert "FAIL" not in response.text
        assert_problem(client.post(PROVISION, json=provision_body(new_serial())), 503)


def assert_serves(running: Running, camera: Camera) -> None:
    """The same process gives verdicts again, and records them."""
    token = camera.token()
    with running.client() as client:
        wait_until(lambda: client.post(VALIDATE, json=wire(token)).status_code == 200, 15)
        assert client.post(VALIDATE, json=wire(token)).json()["validation_result"] == "PASS"
    assert running.audit_rows(token)


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Running:
    """A server on SQLite that does not wait long."""
    return start(tmp_path / "data", "sqlite:", SMA_ANSWER_TIMEOUT="2")


def test_a_full_disk_is_an_outage(on_sqlite: Running) -> None:
    """Threat 19: a disk that takes nothing more is 503, never FAIL; with room it goes on."""
    assert sys.platform == "linux", "a file size limit from outside is Linux's own"
    pid = on_sqlite.server.process.pid
    with on_sqlite.server:
        with on_sqlite.client() as client:
            camera = Camera.provisioned(client, new_serial())
            assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
        before = on_sqlite.count("validation_history")
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, unlimited))
        assert_outage_never_fail(on_sqlite, camera)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert on_sqlite.count("validation_history") == before
        assert_serves(on_sqlite, camera)


def test_a_locked_database_is_an_outage(on_sqlite: Running) -> None:
    """Threat 19: a database that another program holds is 503 in time, never FAIL."""
    file = on_sqlite.database_url.removeprefix("sqlite:///")
    with on_sqlite.server:
        with on_sqlite.client() as client:
            camera = Camera.provisioned(client, new_serial())
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with on_sqlite.client() as client:
                response = client.post(VALIDATE, json=wire(camera.token()))
            assert_problem(response, 503)
            assert "FAIL" not in response.text
            assert time.monotonic() - began < 6
            other.execute("ROLLBACK")
        assert_serves(on_sqlite, camera)


def test_a_full_pool_is_an_outage(tmp_path: Path) -> None:
    """Threat 19: more than the bounded pool holds is 503 with Retry-After, within a second."""
    running = start(tmp_path / "data", "sqlite:", SMA_POOL_LIMIT="2", SMA_ANSWER_TIMEOUT="3")
    with running.server:
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        file = running.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            tokens = [camera.token() for _ in range(12)]
            answers = validate_all(running.server.url, tokens, connections=12)
            other.execute("ROLLBACK")
        assert {answer.status for answer in answers if answer is not None} == {503}
        kinds = [json.loads(answer.body)["type"] for answer in answers if answer is not None]
        assert kinds.count("urn:birthmark:problem:pool-full") >= 6
        assert_serves(running, camera)
