"""What was answered is recorded: in batches, and with several processes, some of them killed."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Sequence
from functools import partial

import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.end_to_end.conftest import Start
from tests.end_to_end.durability.test_durability import assert_recorded, mixed_tokens
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.programs.load import Answer, Note, ask_all, validate_all
from tests.support.programs.running import Running, new_serial, wait_until, workers_of
from tests.support.soak import times

BATCH = VALIDATE + "/batch"
SIZE = 25
ROUNDS = {"1": times(2, 10), "2": times(1, 10)}
"""How often everything is killed, by the number of processes."""
WORKER_ROUNDS = times(1, 10)
BATCHES_A_ROUND = times(60, 120)
BATCHES_BEFORE = BATCHES_A_ROUND // 6
"""At least as many are answered before anything is killed."""
TOKENS_A_ROUND = times(450, 900)


def in_batches(tokens: Sequence[CameraToken]) -> list[Sequence[CameraToken]]:
    """Cut tokens into batches."""
    return [tokens[start : start + SIZE] for start in range(0, len(tokens), SIZE)]


def validate_batches(
    url: str, tokens: Sequence[CameraToken], *, note: Note = lambda answered: None
) -> list[Answer | None]:
    """Have tokens validated in batches; return an answer a token, None where its batch got none."""
    bodies = [
        json.dumps({"tokens": [wire(token) for token in batch]}).encode()
        for batch in in_batches(tokens)
    ]
    answers = asyncio.run(ask_all(url, BATCH, bodies, connections=8, note=note))
    return [
        each
        for batch, answer in zip(in_batches(tokens), answers, strict=True)
        for each in _one_a_token(batch, answer)
    ]


def _one_a_token(batch: Sequence[CameraToken], answer: Answer | None) -> list[Answer | None]:
    if answer is None:
        return [None] * len(batch)
    assert answer.status == 200, answer.body
    results = answer.json()["results"]
    assert len(results) == len(batch)
    return [Answer(200, json.dumps(result).encode(), answer.seconds) for result in results]


def a_camera(running: Running) -> Camera:
    """A provisioned camera."""
    with running.client() as client:
        return Camera.provisioned(client, new_serial())


def is_gone(running: Running, worker: int) -> bool:
    """Whether a process that served does so no longer."""
    return worker not in workers_of(running)


@pytest.mark.soak
@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_batch_that_was_answered_is_missing_after_sigkill(
    start_server: Start, workers: str
) -> None:
    """Threat 30: everything is killed in the middle of batches, several times over.

    A batch is there whole or not at all, and what is there is counted.
    """
    running = start_server("--workers", workers)
    camera = a_camera(running)
    received = 0
    for _ in range(ROUNDS[workers]):
        server = running.server
        deadline = random.randint(BATCHES_BEFORE, BATCHES_A_ROUND // 2)

        def kill_once(answered: int, deadline: int = deadline, running: Running = running) -> None:
            if answered == deadline:
                processes = workers_of(running)
                running.server.process.send_signal(signal.SIGKILL)
                for worker in processes:
                    os.kill(worker, signal.SIGKILL)

        tokens = mixed_tokens(camera, BATCHES_A_ROUND * SIZE)
        answers = validate_batches(server.url, tokens, note=kill_once)
        assert server.process.wait(30) == -signal.SIGKILL
        server.close()
        assert None in answers, "the server had answered everything before it was killed"
        running = start_server("--workers", workers)
        received += assert_recorded(running, tokens, answers)
        assert_batches_are_whole(running, tokens)
    assert received >= ROUNDS[workers] * BATCHES_BEFORE * SIZE
    with running.database() as database:
        assert assert_counters_are_those_of_the_trail(database, killed=True) >= received


def assert_batches_are_whole(running: Running, tokens: Sequence[CameraToken]) -> None:
    """Either all tokens of a batch are recorded, or none."""
    recorded = {
        bytes(sealed)
        for (sealed,) in running.rows("SELECT encrypted_nuc_hash FROM validation_history")
    }
    for batch in in_batches(tokens):
        assert len([token for token in batch if token.encrypted_nuc_hash in recorded]) in {
            0,
            len(batch),
        }


@pytest.mark.soak
def test_a_worker_that_is_killed_takes_no_answer_with_it(start_server: Start) -> None:
    """Threat 30: one of two is killed; the other goes on, and soon there are two again."""
    running = start_server("--workers", "2")
    camera = a_camera(running)
    for _ in range(WORKER_ROUNDS):
        wait_until(lambda: len(workers_of(running)) == 2, 30)
        victim = random.choice(workers_of(running))
        deadline = random.randint(100, TOKENS_A_ROUND // 2)

        def kill_once(answered: int, deadline: int = deadline, victim: int = victim) -> None:
            if answered == deadline:
                os.kill(victim, signal.SIGKILL)

        tokens = mixed_tokens(camera, TOKENS_A_ROUND)
        answers = validate_all(running.server.url, tokens, connections=12, note=kill_once)
        assert assert_recorded(running, tokens, answers) >= deadline
        wait_until(partial(is_gone, running, victim), 30)
    wait_until(lambda: len(workers_of(running)) == 2, 30)
    tokens = mixed_tokens(camera, 100)
    answers = validate_all(running.server.url, tokens, connections=4)
    assert assert_recorded(running, tokens, answers) == len(tokens)
    with running.database() as database:
        assert_counters_are_those_of_the_trail(database, killed=True)


def test_sigterm_drains_several_processes(start_server: Start) -> None:
    """Threat 31: singles and batches that were accepted are answered by every worker."""
    running = start_server("--workers", "2")
    server = running.server
    camera = a_camera(running)
    tokens = mixed_tokens(camera, BATCHES_A_ROUND * SIZE)

    def stop_once(answered: int) -> None:
        if answered == 2 * BATCHES_BEFORE:
            server.process.send_signal(signal.SIGTERM)

    answers = validate_batches(server.url, tokens, note=stop_once)
    assert server.process.wait(40) == 0
    received = assert_recorded(running, tokens, answers)
    assert received >= 2 * BATCHES_BEFORE * SIZE
    assert running.count("validation_history") == received
    assert "Traceback" not in server.said()


async def test_singles_and_batches_share_the_writer(start_server: Start) -> None:
    """Sent at once, each gets its own answers, in its own order, and every token one row."""
    running = start_server()
    camera = a_camera(running)
    singles, batched = mixed_tokens(camera, 400), mixed_tokens(camera, 400)
    bodies = [json.dumps(wire(token)).encode() for token in singles]
    batches = [
        json.dumps({"tokens": [wire(token) for token in batch]}).encode()
        for batch in in_batches(batched)
    ]
    alone, together = await asyncio.gather(
        ask_all(running.server.url, VALIDATE, bodies, connections=8),
        ask_all(running.server.url, BATCH, batches, connections=4),
    )
    assert assert_recorded(running, singles, alone) == len(singles)
    unpacked = [
        each
        for batch, answer in zip(in_batches(batched), together, strict=True)
        for each in _one_a_token(batch, answer)
    ]
    assert assert_recorded(running, batched, unpacked) == len(batched)
    expected = ["PASS", "PASS", "FAIL", "FAIL"] * 100
    for answers in (alone, unpacked):
        told = [a.json()["validation_result"] for a in answers if a is not None]
        assert told == expected
    assert running.count("validation_history") == 800
