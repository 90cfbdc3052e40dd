"""Rate limits as callers see them: statuses, header fields, and never a FAIL."""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.integration.web.conftest import documented_client
from tests.support.access_keys import bearer, create_known_key
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    new_key,
    public_pem,
    wire,
)
from tests.support.cameras.published_camera import PublishedCamera
from tests.support.problems import assert_problem
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial, start
from tests.support.programs.server import server_environ

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
    assert "20 in 3,600 seconds" in problem["detail"]
    wait = int(refused.headers["retry-after"])
    assert 3590 <= wait <= 3601
    told = items_of(refused, "RateLimit")["validate"]
    assert told["r"] == 0
    assert 0 < told["t"] <= wait
    assert len(limited.audit_rows(token)) == 20


def test_published_clients_share_the_limit(
    limited: Running, client: httpx2.Client, camera: Camera
) -> None:
    """Threat 19: a 429 at /validate says nothing of a token; failures there count as elsewhere."""
    theirs = PublishedCamera(camera.serial, camera.nuc_hash, camera.table_keys)
    assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
    first = client.post("/validate", json=theirs.body())
    assert first.json()["valid"] is True
    assert items_of(first, "RateLimit")["validate"]["r"] == 18
    failed = [client.post("/validate", json=theirs.body(nonce="00" * 12)) for _ in range(5)]
    assert [each.json()["valid"] for each in failed] == [False] * 5
    refused = client.post("/validate", json=theirs.body())
    assert "valid" not in assert_problem(refused, 429)


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


@pytest.mark.parametrize("path", [VALIDATE, BATCH, "/validate", PROVISION])
@pytest.mark.parametrize("size", ["known", "unknown"])
def test_what_is_refused_unread_costs_one_everywhere(
    client: httpx2.Client, path: str, size: str
) -> None:
    """Threat 23: 415 and 413 take from the same limit as an answer, by the same amount."""
    kind = "provision" if path == PROVISION else "validate"
    most = 3 if path == PROVISION else 20
    large = b'{"a": "' + b"a" * 2_000_000 + b'"}'
    for left, (body, media_type, status) in enumerate(
        ((b"{}", "text/plain", 415), (large, "application/json", 413)), 1
    ):
        response = client.post(
            path,
            content=body if size == "known" else iter([body]),
            headers={"Content-Type": media_type},
        )
        assert_problem(response, status)
        assert items_of(response, "RateLimit")[kind]["r"] == most - left


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


def test_the_processes_of_a_server_count_together(tmp_path: Path) -> None:
    """Threats 23 and 36: no store is needed, and the limits are not as many times as wide."""
    limits = ("--rate-admin", "20/hour", "--rate-failures", "10/hour")
    running = start(tmp_path / "a", "sqlite:", "--workers", "2", *limits, SMA_TABLES="50")
    with running.client("127.0.7.1") as other:
        camera = Camera.provisioned(other, new_serial())
    body = wire(camera.token()) | {"nonce": "0" * 24}

    def ask(number: int) -> tuple[int, int]:
        # A new connection for each, so that both processes get some.
        with running.client() as client:
            return client.get("/stats").status_code, client.post(VALIDATE, json=body).status_code

    with running.server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    stats, verdicts = (Counter(column) for column in zip(*answers, strict=True))
    assert stats == {200: 20, 429: 40}
    # Two processes that ask at the same moment for the last FAIL may both get it.
    assert verdicts[200] in {10, 11}
    assert verdicts[200] + verdicts[429] == 60


def test_many_batches_at_once_overdraw_once(client: httpx2.Client, camera: Camera) -> None:
    """Threat 36: 40 batches at once got 8,000 FAILs through a limit of 10."""
    bad = wire(camera.token()) | {"nonce": "0" * 24}
    body = {"tokens": [bad] * 2}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(BATCH, json=body), range(8)))
    statuses = Counter(each.status_code for each in answers)
    assert statuses == {200: 3, 429: 5}
    for refused in (each for each in answers if each.status_code == 429):
        assert 'FAIL"' not in refused.text
        assert items_of(refused, "RateLimit")["failures"]["r"] == 0
        assert int(refused.headers["retry-after"]) > 600


def test_what_is_left_tells_no_verdict_that_is_withheld(tmp_path: Path) -> None:
    """Threat 37: the header of a 409 and of what follows is the same for PASS and FAIL."""
    running = start(
        tmp_path / "data",
        "sqlite:",
        *("--rate-failures", "9/hour", "--replay", "refuse-same-caller"),
    )
    try:
        told = {}
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        for verdict, address in (("PASS", "127.0.5.1"), ("FAIL", "127.0.5.2")):
            good = wire(camera.token())
            bad = wire(camera.token()) | {"nonce": "0" * 24}
            seen = []
            with running.client(address) as client:
                for token in (good, bad):
                    assert client.post(VALIDATE, json=token).status_code == 200
                replayed = good if verdict == "PASS" else bad
                for _ in range(12):
                    again = client.post(VALIDATE, json=replayed)
                    assert_problem(again, 409)
                    seen.append(items_of(again, "RateLimit")["failures"]["r"])
                batch = client.post(BATCH, json={"tokens": [replayed] * 12})
                assert batch.status_code == 200
                seen.append(items_of(batch, "RateLimit")["failures"]["r"])
                last = client.post(VALIDATE, json=wire(camera.token()))
                seen.append(items_of(last, "RateLimit")["failures"]["r"])
            told[verdict] = seen
        assert told["PASS"] == told["FAIL"] == [8] * 14
    finally:
        running.server.close()


# --- with access keys


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks for keys, and lets an address guess three times in an hour."""
    data_dir = tmp_path_factory.mktemp("keys") / "data"
    for command in (("init",), ("keys", "create", "first", "--scope", "admin")):
        done = sma(*command, environ=server_environ(data_dir))
        assert done.returncode == 0, done.stderr
    running = start(
        data_dir,
        "sqlite:",
        *("--access", "keys", "--rate-guesses", "3/hour", "--rate-validate", "5/hour"),
    )
    yield running
    running.server.close()


def key_for(running: Running, name: str, *options: str) -> dict[str, str]:
    """Make a key; return the header that shows it, once the server knows it."""
    return bearer(create_known_key(running, name, *options))


def answers_to(client: httpx2.Client, times: int) -> list[int]:
    """The statuses of so many malformed validations, which count as any other."""
    return [client.post(VALIDATE, json={}).status_code for _ in range(times)]


def test_a_key_is_counted_wherever_it_comes_from(with_keys: Running) -> None:
    """Threat 23: and keys that share an address are counted apart."""
    one = key_for(with_keys, "one", "--scope", "validate")
    two = key_for(with_keys, "two", "--scope", "validate")
    with with_keys.client("127.0.3.1", headers=one) as here:
        assert answers_to(here, 3) == [422] * 3
    with with_keys.client("127.0.3.2", headers=one) as there:
        assert answers_to(there, 4) == [422] * 2 + [429] * 2
    with with_keys.client("127.0.3.2", headers=two) as other:
        assert answers_to(other, 6) == [422] * 5 + [429]


def test_a_key_has_its_own_rate(with_keys: Running) -> None:
    own = key_for(with_keys, "own", "--scope", "validate", "--rate", "8/hour; 7/minute")
    free = key_for(with_keys, "free", "--scope", "validate", "--rate", "none")
    with with_keys.client(headers=own) as client:
        assert answers_to(client, 9) == [422] * 7 + [429] * 2
        policy = client.post(VALIDATE, json={})
        assert items_of(policy, "RateLimit-Policy") == {
            "validate-60s": {"q": 7, "w": 60},
            "validate-3600s": {"q": 8, "w": 3600},
        }
    with with_keys.client(headers=free) as client:
        assert answers_to(client, 20) == [422] * 20


def test_a_key_with_a_rate_that_is_none_is_refused(with_keys: Running) -> None:
    made = sma(
        *("keys", "create", "x", "--scope", "validate", "--rate", "often"),
        environ=with_keys.environ,
    )
    assert made.returncode != 0
    assert "The rate of a key cannot be used" in made.stderr


@pytest.mark.parametrize("path", [VALIDATE, BATCH, "/validate", PROVISION, "/stats"])
def test_who_guesses_is_slowed_down_and_nobody_else(
    with_keys: Running, path: str, address: str
) -> None:
    """Threats 22 and 23: 429 in place of 401 after some guesses, by address. A good key is let in
    from there all the same, and has lost nothing."""
    good = key_for(with_keys, f"beside {address}", "--scope", "validate")
    wrong = {"authorization": "Bearer sma_" + "a" * 63}
    with with_keys.client(address) as client:
        for _ in range(10):
            assert client.post(path, json={}).status_code == 401, "it showed nothing"
        statuses = [client.post(path, json={}, headers=wrong).status_code for _ in range(5)]
        assert statuses == [401] * 3 + [429] * 2
        refused = client.post(path, json={}, headers=wrong)
        assert "wrong credentials" in assert_problem(refused, 429)["detail"]
        assert int(refused.headers["retry-after"]) > 3_000
        first = client.post(VALIDATE, json={}, headers=good)
        assert first.status_code == 422
        assert items_of(first, "RateLimit")["validate"]["r"] == 4
    with with_keys.client(f"127.0.3.{100 + len(path)}") as other:
        assert other.get("/stats", headers=wrong).status_code == 401


def test_probes_are_free_without_a_key_too(with_keys: Running) -> None:
    with with_keys.client("127.0.3.7") as client:
        assert {client.get("/health/ready").status_code for _ in range(20)} == {200}


@pytest.mark.parametrize("kind", ["validate", "failures"])
def test_a_batch_of_a_caller_that_has_nothing_left_is_not_read(tmp_path: Path, kind: str) -> None:
    """Its body costs as much to parse as that of others. Here it never comes."""
    running = start(tmp_path / "a", "sqlite:", f"--rate-{kind}", "5/hour", SMA_TABLES="50")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        body = wire(camera.token()) | {"nonce": "0" * 24}
        for _ in range(5):
            assert client.post(VALIDATE, json=body).status_code == 200
        place = urlsplit(running.server.url)
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            head = (
                f"POST {VALIDATE}/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 184012\r\n"
            )
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
            said = connection.recv(4096)
    assert said.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: " in said.lower()
    assert f'"{kind}";r=0;'.encode() in said
