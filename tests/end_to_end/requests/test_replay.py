"""One token, brought many times: by whom, through which process, and through a power cut."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from birthmark_sma.protocol.camera_token import CameraToken
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.counting import (
    assert_counters_are_those_of_the_trail,
    assert_the_chains_verify,
    assert_the_ledger_agrees_with_the_trail,
)
from tests.support.problems import assert_problem
from tests.support.programs.load import Answer, validate_all
from tests.support.programs.running import Running, new_serial

BATCH = f"{VALIDATE}/batch"
CALLERS = ("127.0.0.1", "127.0.0.2")
REFUSING = ("--replay", "refuse-same-caller")


def new_camera(running: Running) -> Camera:
    with running.client() as client:
        return Camera.provisioned(client, new_serial())


def kinds_of(running: Running, token: CameraToken) -> Counter[str | None]:
    """How often the audit trail has each kind of repeat for a token."""
    rows = running.rows(
        "SELECT repeat FROM validation_history WHERE encrypted_nuc_hash = ?",
        token.encrypted_nuc_hash,
    )
    return Counter(repeat for (repeat,) in rows)


def test_one_token_from_two_callers_at_once(start_server: Start) -> None:
    """Threat 17: 200 times, through two processes: one first sight, one dual submission."""
    running = start_server("--workers", "2")
    token = new_camera(running).token()

    def ask(address: str) -> list[dict[str, Any]]:
        # New connections, which the system deals out to both processes.
        answers = []
        for _ in range(10):
            with running.client(address) as client:
                answers.append(client.post(VALIDATE, json=wire(token)).json())
        return answers

    with ThreadPoolExecutor(20) as threads:
        answers = [one for some in threads.map(ask, CALLERS * 10) for one in some]
    assert len(answers) == 200
    told = {tuple((k, v) for k, v in each.items() if k != "timestamp") for each in answers}
    assert len(told) == 1
    assert answers[0]["validation_result"] == "PASS"
    assert kinds_of(running, token) == {None: 1, "dual_submission": 1, "replayed": 198}
    with running.client() as client:
        repeats = client.get("/stats").json()["repeats_24h"]
    assert repeats == {"replayed": 198, "dual_submission": 1}
    with running.database() as database:
        assert_the_ledger_agrees_with_the_trail(database)


def test_the_ledger_survives_a_power_cut(start_server: Start) -> None:
    """Threats 17 and 30: killed under load, ledger, counters and trail still agree.

    And a token that was answered before the kill is known after it.
    """
    chance = random.Random(17)
    running = start_server()
    camera = new_camera(running)
    for _ in range(4):
        tokens = [camera.token() for _ in range(400)]
        brought = tokens + chance.choices(tokens, k=400)
        last = chance.randrange(200, 600)

        def kill_in_time(answered: int, running: Running = running, last: int = last) -> None:
            if answered == last:
                running.server.kill()

        answers = validate_all(running.server.url, brought, note=kill_in_time)
        running = start_server()
        with running.database() as database:
            assert_the_ledger_agrees_with_the_trail(database)
            assert_counters_are_those_of_the_trail(database, killed=True)
            assert_the_chains_verify(database)
        answered = next(t for t, a in zip(brought, answers, strict=True) if a is not None)
        again = validate_all(running.server.url, [answered])
        assert isinstance(again[0], Answer)
        assert again[0].status == 200
        assert kinds_of(running, answered)["replayed"] >= 1


# --- SMA_REPLAY=refuse-same-caller


def test_a_replay_is_refused_where_that_is_set(start_server: Start) -> None:
    """Threats 17 and 19: 409 and no verdict, whatever the token; another caller gets its answer."""
    running = start_server(*REFUSING)
    camera = new_camera(running)
    tokens = {
        "PASS": camera.token(),
        "FAIL": camera.token(nuc_hash=bytes(range(32))),
        "400": camera.token(key_index=123_456),
    }
    refusals = set()
    with running.client() as client, running.client(CALLERS[1]) as other:
        for name, token in tokens.items():
            first = client.post(VALIDATE, json=wire(token))
            for _ in range(2):
                again = client.post(VALIDATE, json=wire(token), headers={"X-Request-ID": "same"})
                assert_problem(again, 409)
                assert again.json()["type"].endswith(":token-already-submitted")
                assert "validation_result" not in again.json()
                refusals.add(again.text)
            elsewhere = other.post(VALIDATE, json=wire(token))
            assert elsewhere.status_code == first.status_code, name
            assert elsewhere.json()["validation_result"] == first.json()["validation_result"]
            assert kinds_of(running, token) == {None: 1, "replayed": 2, "dual_submission": 1}
    assert len(refusals) == 1, "a refusal must not tell a FAIL from a PASS"
    with running.database() as database:
        assert_the_ledger_agrees_with_the_trail(database)
        assert_counters_are_those_of_the_trail(database)


def test_a_refused_fail_counts_among_no_failures(start_server: Start) -> None:
    """Threat 37: what is left of the limit must not tell the verdict that a 409 withholds."""
    running = start_server(*REFUSING, "--rate-failures", "5/hour")
    token = wire(new_camera(running).token(nuc_hash=bytes(range(32))))
    with running.client() as client:
        statuses = [client.post(VALIDATE, json=token).status_code for _ in range(7)]
        assert statuses == [200, *[409] * 6]
        forged = [wire(new_camera(running).token(nuc_hash=bytes(32))) for _ in range(5)]
        statuses = [client.post(VALIDATE, json=each).status_code for each in forged]
        assert statuses == [200] * 4 + [429]
    with running.client(CALLERS[1]) as client:
        client.post(BATCH, json={"tokens": [token] * 6})
        assert client.post(BATCH, json={"tokens": [token]}).status_code == 200


def test_a_replay_in_a_batch_spoils_no_other(start_server: Start) -> None:
    """Its element has an error and no verdict, also where it comes twice within the batch."""
    running = start_server(*REFUSING)
    camera = new_camera(running)
    one, two = wire(camera.token()), wire(camera.token())
    with running.client() as client:
        body = {"tokens": [one, two, one, {"nonce": 1}]}
        first = client.post(BATCH, json=body).json()["results"]
        again = client.post(BATCH, json=body).json()["results"]
    assert [each.get("validation_result") for each in first] == ["PASS", "PASS", None, "FAIL"]
    assert [each.get("validation_result") for each in again] == [None, None, None, "FAIL"]
    for each in (first[2], *again[:3]):
        assert set(each) == {"error"}
        assert "before" in json.dumps(each)
