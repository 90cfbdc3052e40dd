"""POST /api/v1/validate/nuc/batch: each element as it would be alone, none spoiling another."""

import random
from typing import Any

import httpx2
import pytest

from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.problems import assert_problem
from tests.support.programs.running import Running

BATCH = f"{VALIDATE}/batch"
UNKNOWN_TABLE = 999_999


@pytest.fixture
def camera(client: httpx2.Client) -> Camera:
    """A provisioned camera."""
    return Camera.provisioned(client, f"batch-{random.getrandbits(64):x}")


def results_of(client: httpx2.Client, tokens: list[Any]) -> list[dict[str, Any]]:
    """The results for these elements."""
    response = client.post(BATCH, json={"tokens": tokens})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    assert len(results) == len(tokens)
    return results


def test_each_element_gets_the_answer_that_it_gets_alone(
    client: httpx2.Client, camera: Camera, running: Running
) -> None:
    """In their order, and the audit trail has all that are well formed."""
    genuine = wire(camera.token())
    unknown = wire(camera.token(nuc_hash=bytes(32)))
    tokens: list[Any] = [genuine, unknown, genuine | {"table_id": UNKNOWN_TABLE}, genuine]
    before = running.count("validation_history")
    results = results_of(client, tokens)
    assert running.count("validation_history") == before + 4
    alone = [client.post(VALIDATE, json=token).json() for token in (genuine, unknown)]
    for together, single in zip(results[:2], alone, strict=True):
        assert together | {"timestamp": ""} == single | {"timestamp": ""}
    assert results[2] == {"validation_result": "FAIL", "error": "Unknown table ID"}
    assert results[3]["validation_result"] == "PASS"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        7,
        "token",
        [],
        {},
        {"nonce": "00"},
        {"table_id": "1"},
        {"table_id": -1},
        {"table_id": 2**31},
        {"extra": 1},
        {"encrypted_nuc_hash": "zz" * 48},
    ],
)
def test_a_malformed_element_spoils_no_other(
    client: httpx2.Client, camera: Camera, running: Running, bad: Any
) -> None:
    """Threat 15: it gets FAIL with an error of its own, and no row in the audit trail."""
    genuine = wire(camera.token())
    element = genuine | bad if isinstance(bad, dict) and bad else bad
    before = running.count("validation_history")
    first, middle, last = results_of(client, [genuine, element, genuine])
    assert (first["validation_result"], last["validation_result"]) == ("PASS", "PASS")
    assert middle["validation_result"] == "FAIL"
    assert middle["error"]
    assert set(middle) == {"validation_result", "error"}
    assert running.count("validation_history") == before + 2


def test_nothing_but_malformed_elements(client: httpx2.Client, running: Running) -> None:
    """There is nothing to judge, and so nothing to record."""
    before = running.count("validation_history")
    assert [each["validation_result"] for each in results_of(client, [{}] * 3)] == ["FAIL"] * 3
    assert running.count("validation_history") == before


def test_a_thousand_elements_in_any_order(client: httpx2.Client, camera: Camera) -> None:
    """The largest batch: every answer stands where its token stood."""
    genuine, unknown = wire(camera.token()), wire(camera.token(nuc_hash=bytes(32)))
    kinds = {
        "PASS": genuine,
        "FAIL": unknown,
        "error": genuine | {"table_id": UNKNOWN_TABLE},
        "malformed": {"nonce": 1},
    }
    chosen = random.Random(20).choices(list(kinds), k=1_000)
    results = results_of(client, [kinds[kind] for kind in chosen])
    for kind, result in zip(chosen, results, strict=True):
        assert result["validation_result"] == ("PASS" if kind == "PASS" else "FAIL")
        assert ("error" in result) == (kind in {"error", "malformed"})


@pytest.mark.parametrize(
    "body",
    [
        {"tokens": []},
        {"tokens": [{}] * 1_001},
        {"tokens": {}},
        {"tokens": None},
        {},
        {"tokens": [{}], "more": 1},
    ],
)
def test_a_malformed_batch_is_422(client: httpx2.Client, body: dict[str, Any]) -> None:
    """None, too many, or no list of elements."""
    assert_problem(client.post(BATCH, json=body), 422)


def test_a_batch_over_the_limit_is_413(client: httpx2.Client) -> None:
    """Threat 16: a batch has room for a thousand tokens, and not for everything."""
    body = {"tokens": ["x" * 2_000] * 900}
    assert_problem(client.post(BATCH, json=body), 413)
