"""What malformed requests cost: an answer no larger than the question, and nobody else's time."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from birthmark_sma.web.api.batch_parsing import parse_batch, parse_elements
from birthmark_sma.web.problems import InvalidRequestError
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.problems import assert_problem
from tests.support.programs.running import Running, new_serial

BATCH = f"{VALIDATE}/batch"
TOKEN = {"encrypted_nuc_hash": "ab" * 48, "table_id": 1, "key_index": 2, "nonce": "cd" * 12}


def members(count: int, name: str = "") -> dict[str, int]:
    """So many members that nobody knows."""
    return {f"{name}{number}": 1 for number in range(count)}


def post(client: httpx2.Client, path: str, body: Any) -> httpx2.Response:
    """Send a body as small as it can be written."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


def test_a_batch_of_unknown_members(sqlite_client: httpx2.Client) -> None:
    """Threat 35: 0.9 MB gave an answer of 10.7 MB; now 20 errors, and how many more there are."""
    response = post(sqlite_client, BATCH, {"tokens": [], **members(90_000)})
    problem = assert_problem(response, 422)
    assert len(problem["errors"]) == 20
    assert problem["errors"][0]["field"] == "tokens"
    assert problem["more_errors"] == 90_001 - 20
    assert "and 89,981 more errors" in problem["detail"]
    assert len(response.content) < 4_000


@pytest.mark.parametrize("count", [21, 900, 7_000])
@pytest.mark.parametrize("path", [VALIDATE, PROVISION])
def test_other_requests_of_unknown_members(
    sqlite_client: httpx2.Client, path: str, count: int
) -> None:
    """Threat 35: few enough to be parsed, or not."""
    fields = {VALIDATE: TOKEN, PROVISION: provision_body("x")}[path]
    response = post(sqlite_client, path, {**members(count), **fields})
    problem = assert_problem(response, 422)
    assert len(problem["errors"]) == 20
    assert problem["more_errors"] == pytest.approx(count - 20, abs=15)
    assert len(response.content) < 4_000


@pytest.mark.parametrize("count", [21, 900, 7_000])
@pytest.mark.parametrize("path", ["/validate", "/validate-legacy"])
def test_published_clients_requests_of_unknown_members(
    sqlite_client: httpx2.Client, path: str, count: int
) -> None:
    """Threat 35: they are ignored there, and not listed."""
    response = post(sqlite_client, path, members(count))
    assert response.status_code == 200
    assert response.json()["valid"] is False
    assert len(response.content) < 1_000


def test_names_are_quoted_in_part(sqlite_client: httpx2.Client) -> None:
    """Threat 35: whatever their length."""
    response = post(sqlite_client, VALIDATE, {**TOKEN, **members(20, "n" * 3_000)})
    assert len(assert_problem(response, 422)["errors"]) == 20
    assert len(response.content) < 6_000


@pytest.mark.parametrize("count", [30, 900, 90_000])
def test_an_element_of_unknown_members(client: httpx2.Client, running: Running, count: int) -> None:
    """Threat 35: its error is short, and it spoils no other."""
    genuine = wire(Camera.provisioned(client, new_serial()).token())
    before = running.count("validation_history")
    response = post(client, BATCH, {"tokens": [genuine, genuine | members(count), genuine]})
    assert response.status_code == 200
    first, flood, last = response.json()["results"]
    assert (first["validation_result"], last["validation_result"]) == ("PASS", "PASS")
    assert flood["validation_result"] == "FAIL"
    assert "more errors" in flood["error"]
    assert len(flood["error"]) < 400
    assert running.count("validation_history") == before + 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"tokens":[' + b"[]," * 300_000 + b"1]}", "at most 1000 items"),
        (b'{"tokens":' + b"[" * 900_000, "not JSON"),
        (b'{"tokens":[' + b"[[1]]," * 9_000, "at most 1000 items"),
        (b'"' + b',"' * 400_000, "not a JSON object"),
        (b'{"tokens":[1],"tokens":[' + b"[]," * 9_000, "twice"),
        (b'{"tokens":{' + b'"a":[1],' * 9_000 + b'"b":1}}', "valid list"),
        (b'{"tokens":[1],"a":[' + b"1," * 20_000 + b"1]}", "a: extra"),
        (b'{"tokens":[1],"a":[' + b"1," * 20_000, "not JSON"),
    ],
)
def test_more_values_than_any_batch_has(
    sqlite_client: httpx2.Client, body: bytes, said: str
) -> None:
    """Threats 21 and 35: each is refused with what is wrong with it."""
    response = sqlite_client.post(BATCH, content=body, headers={"Content-Type": "application/json"})
    assert said in assert_problem(response, 422)["detail"]


def test_a_batch_that_is_read_in_parts(sqlite_client: httpx2.Client) -> None:
    """A text in which every sign of structure stands in strings, and blanks are everywhere."""
    odd = '[],{}:"\\' * 3_000
    elements = [TOKEN, odd, [], {"a": [odd]}, None, [[1], {"b": 2}], "é\\"]
    for indent in (None, 1):
        content = json.dumps({"tokens": elements}, indent=indent).encode()
        response = sqlite_client.post(
            BATCH, content=content, headers={"Content-Type": "application/json"}
        )
        results = response.json()["results"]
        assert [len(each) == 2 for each in results] == [False] + [True] * 6


@pytest.mark.parametrize(
    "malformed",
    [
        "%s garbage",
        "%s]]",
        "%s {}",
        "[%s",
        '{"tokens": {}, [%.0s1]}',
        '{"tokens" [{}, {"a": [%.0s]}]}',
        '{"tokens": [{}, 1]%.0s, }',
        '{"tokens": [{}, 1)%.0s}',
    ],
)
def test_a_batch_that_is_read_in_parts_is_json(
    sqlite_client: httpx2.Client, malformed: str
) -> None:
    """Threat 32: a large batch is read no more generously than a small one."""
    for count in (1, 13_000):
        batch = json.dumps({"tokens": [TOKEN, members(count)]})
        content = malformed % batch
        if count > len(content):
            content = content.replace("{}", json.dumps(members(count)), 1)
        response = sqlite_client.post(
            BATCH, content=content, headers={"Content-Type": "application/json"}
        )
        assert_problem(response, 422)


FLOODS = {
    "members": {"tokens": [], **members(90_000)},
    "elements": {"tokens": [members(80)] * 1_000},
    "one element": {"tokens": [TOKEN, members(90_000)]},
    "tokens": {"tokens": [TOKEN] * 1_000},
}


@pytest.fixture
def frozen_objects() -> Iterator[None]:
    """Leave the objects of other tests out of garbage collections, as a server does."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_objects")
@pytest.mark.parametrize("flood", FLOODS)
def test_others_do_not_wait_for_a_large_batch(flood: str) -> None:
    """Threat 35: the loop is held no longer than a few dozen genuine tokens take.

    The time is the thread's CPU time, because other programs only ever add to the time of a clock.
    The shortest of several attempts counts, because they share the processor's caches.
    """
    content = json.dumps(FLOODS[flood]).encode()
    genuine = json.dumps({"tokens": [TOKEN] * 1_000}).encode()

    async def read(body: bytes) -> None:
        try:
            async for _ in parse_elements(await parse_batch(body)):
                pass
        except InvalidRequestError:
            pass

    async def longest_hold() -> float:
        reading = asyncio.ensure_future(read(content))
        longest = 0.0
        while not reading.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        return longest

    def whole() -> float:
        began = time.thread_time()
        asyncio.run(read(genuine))
        return time.thread_time() - began

    ratio = min(asyncio.run(longest_hold()) for _ in range(8)) / min(whole() for _ in range(8))
    assert ratio < 1.5, f"the loop is held {ratio:.1f} times as long as for a genuine batch"
