"""Rate limits as callers see them: statuses, header fields, and never a FAIL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.camera import PROVISION, VALIDATE, Camera, new_key, public_pem, wire
from tests.support.problems import assert_problem
from tests.support.running import Running, new_serial, start
from tests.web.conftest import documented_client

BATCH = f"{VALIDATE}/batch"
# A list of strings with integers for parameters (RFC 9651, sections 3.1 and 3.3).
_ITEM = r'"[a-z0-9-]+"(;[a-z]+=\d{1,15})+'
LIST = re.compile(rf"{_ITEM}(, {_ITEM})*")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with narrow limits. Each test calls from an address of its own."""
    running = start(
        tmp_path_factory.mktemp("limited") / "data",
        "sqlite:",
        *("--rate-validate", "20/hour", "--rate-failures", "5/hour"),
        *("--rate-provision", "3/hour", "--rate-admin", "4/hour"),
    )
    yield running
    running.server.close()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """An address of the loopback network that no other test calls from."""
    number = sum(ord(letter) * place for place, letter in enumerate(request.node.name, 1))
    return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255 or 1}"


@pytest.fixture
def client(limited: Running, address: str) -> Iterator[httpx2.Client]:
    """A client that compares answers with the OpenAPI document."""
    with documented_client(limited, address) as opened:
        yield opened


@pytest.fixture
def camera(client: httpx2.Client) -> Camera:
    """A provisioned camera."""
    return Camera.provisioned(client, new_serial())


def items_of(response: httpx2.Response, name: str) -> dict[str, dict[str, int]]:
    """A field as a dictionary: policy to parameters."""
    value = response.headers[name]
    assert LIST.fullmatch(value), value
    return {
        item.split(";")[0].strip('"'): {
            key: int(number) for key, number in (part.split("=") for part in item.split(";")[1:])
        }
        for item in value.split(", ")
    }


def test_every_answer_tells_what_is_left(client: httpx2.Client, camera: Camera) -> None:
    """As draft-ietf-httpapi-ratelimit-headers-10 has it; on direct answers too."""
    for left in (19, 18, 17):
        response = client.post(VALIDATE, json=wire(camera.token()))
        assert response.json()["validation_result"] == "PASS"
        assert items_of(response, "RateLimit-Policy") == {"validate": {"q": 20, "w": 3600}}
        (told,) = items_of(response, "RateLimit").values()
        assert told["r"] == left
        assert 3590 <= told["t"] <= 3601
    assert "retry-after" not in response.headers


def test_the_limit_is_exact_and_no_verdict(
    limited: Running, client: httpx2.Client, camera: Camera
) -> None:
    """Threats 19 and 23: as many as allowed, and then 429: no FAIL, and in no audit trail."""
    token = camera.token()
    statuses = [client.post(VALIDATE, json=wire(token)).status_code for _ in range(25)]
    assert statuses == [200] * 20 + [429] * 5
    refused = client.post(VALIDATE, json=wire(token))
    problem = assert_problem(refused, 429)
    assert "FAIL" not in refused.text
    assert "PASS" not in refused.text
    assert problem["type"] == "urn:birthmark:problem:rate-limited"
    assert "20 in 3600 seconds" in problem["detail"]
    wait = int(refused.headers["retry-after"])
    assert 3590 <= wait <= 3601
    told = items_of(refused, "RateLimit")["validate"]
    assert told["r"] == 0
    assert 0 < told["t"] <= wait
    assert len(limited.audit_rows(token)) == 20


def test_whoever_else_asks_is_let_in(
    limited: Running, client: httpx2.Client, camera: Camera
) -> None:
    """Threat 23: limits are each caller's own."""
    for _ in range(21):
        last = client.post(VALIDATE, json=wire(camera.token()))
    assert last.status_code == 429
    with limited.client("127.88.0.1") as other:
        assert other.post(VALIDATE, json=wire(camera.token())).status_code == 200


def test_a_batch_counts_its_tokens(client: httpx2.Client, camera: Camera) -> None:
    """All of it passes or none of it does."""
    tokens = [wire(camera.token()) for _ in range(15)]
    first = client.post(BATCH, json={"tokens": tokens})
    assert first.status_code == 200
    assert items_of(first, "RateLimit")["validate"]["r"] == 5
    second = client.post(BATCH, json={"tokens": tokens})
    assert_problem(second, 429)
    assert "FAIL" not in second.text
    assert items_of(second, "RateLimit")["validate"]["r"] == 5
    assert client.post(BATCH, json={"tokens": tokens[:5]}).status_code == 200
    assert client.post(VALIDATE, json=tokens[0]).status_code == 429


def test_a_batch_that_can_never_pass_is_told_so(client: httpx2.Client, camera: Camera) -> None:
    response = client.post(BATCH, json={"tokens": [wire(camera.token())] * 21})
    problem = assert_problem(response, 429)
    assert problem["detail"].startswith("21 camera tokens at once can never pass: the limit is 20")
    assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200


def test_malformed_requests_count_once(client: httpx2.Client) -> None:
    """Threat 16: who sends rubbish uses its limit up as well; and errors tell what is left."""
    for left in (19, 18, 17):
        response = client.post(VALIDATE, json={"table_id": "x"})
        assert_problem(response, 422)
        assert items_of(response, "RateLimit")["validate"]["r"] == left
    response = client.post(BATCH, json={"tokens": []})
    assert_problem(response, 422)
    assert items_of(response, "RateLimit")["validate"]["r"] == 16


def test_who_gathers_fails_slows_down(client: httpx2.Client, camera: Camera) -> None:
    """Whatever they are: 400s as well, in batches as well. A good token then waits too."""
    good = wire(camera.token())
    bad = {**good, "nonce": "0" * 24}
    assert client.post(VALIDATE, json=bad).json()["validation_result"] == "FAIL"
    assert client.post(VALIDATE, json={**good, "table_id": 99_999}).status_code == 400
    batch = client.post(BATCH, json={"tokens": [good, bad, bad]})
    assert items_of(batch, "RateLimit")["failures"]["r"] == 3
    last = client.post(VALIDATE, json=bad)
    assert last.status_code == 200
    assert items_of(last, "RateLimit")["failures"]["r"] == 1
    refused = client.post(VALIDATE, json=good)
    assert "camera tokens that FAIL" in assert_problem(refused, 429)["detail"]
    assert refused.json().get("validation_result") is None
    assert items_of(refused, "RateLimit")["failures"]["r"] == 0
    assert items_of(refused, "RateLimit-Policy")["failures"] == {"q": 5, "w": 3600}
    assert client.post(BATCH, json={"tokens": [good]}).status_code == 429


def test_provisioning_is_limited_by_itself(client: httpx2.Client) -> None:
    def ask() -> httpx2.Response:
        body = {
            "device_public_key": public_pem(new_key()),
            "device_serial": new_serial(),
            "device_family": "Test",
        }
        return client.post(PROVISION, json=body)

    answers = [ask() for _ in range(5)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
    assert items_of(answers[0], "RateLimit-Policy") == {"provision": {"q": 3, "w": 3600}}
    assert_problem(answers[4], 429)


@pytest.mark.parametrize(
    "path", ["/health", "/stats", "/docs", "/openapi.json", "/pki/root.crt", "/nothing"]
)
def test_everything_else_is_limited_together(limited: Running, address: str, path: str) -> None:
    """Threat 23: what is there, and what is not."""
    with limited.client(address) as client:
        answers = [client.get(path) for _ in range(6)]
        assert [each.status_code == 429 for each in answers] == [False] * 4 + [True] * 2
        assert_problem(answers[5], 429)
        assert items_of(answers[0], "RateLimit-Policy") == {"admin": {"q": 4, "w": 3600}}
        assert client.head("/").status_code == 429
        assert client.get(PROVISION).status_code == 429


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_probes_are_never_refused(limited: Running, address: str, path: str) -> None:
    """A healthy server must not look dead."""
    with limited.client(address) as client:
        answers = [client.get(path) for _ in range(50)]
        assert {each.status_code for each in answers} == {200}
        assert "ratelimit" not in answers[0].headers


def test_both_ways_tell_the_same(client: httpx2.Client, camera: Camera) -> None:
    """A body of unknown length goes through ASGI, and has the same fields."""
    direct = client.post(VALIDATE, json=wire(camera.token()))
    content = iter([json.dumps(wire(camera.token())).encode()])
    chunked = client.post(VALIDATE, content=content, headers={"content-type": "application/json"})
    assert items_of(direct, "RateLimit")["validate"]["r"] == 19
    assert items_of(chunked, "RateLimit")["validate"]["r"] == 18
    assert set(direct.headers) == set(chunked.headers)


def test_nothing_is_limited_on_a_laptop(running_on_sqlite: Running) -> None:
    with running_on_sqlite.client() as client:
        assert "ratelimit" not in client.get("/health").headers
        assert all(client.get("/health").status_code == 200 for _ in range(50))
        assert "ratelimit" not in client.post(VALIDATE, json={}).headers


def test_several_processes_without_a_store_say_so(tmp_path: Path) -> None:
    """At the start, once; and not where nothing is limited, or a store is named."""
    running = start(tmp_path / "a", "sqlite:", "--workers", "2", "--rate-admin", "5/hour")
    running.server.close()
    assert running.server.said().count("each of the 2 processes counts by itself") == 1
    running = start(tmp_path / "a", "sqlite:", "--workers", "2")
    running.server.close()
    assert running.server.said().count("each of the 2 processes counts by itself") == 1
