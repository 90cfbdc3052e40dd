"""POST /validate: what the Birthmark project's published clients send, and what they are told."""

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from birthmark_sma.authority.revocation import suspend_device
from tests.support.camera import VALIDATE, Camera, wire
from tests.support.problems import assert_problem, fields_of
from tests.support.published_camera import PublishedCamera, published_key
from tests.support.running import Running, new_serial

PUBLISHED = "/validate"
VECTORS = Path(__file__).parents[2] / "vectors"
VALID = {"valid": True, "message": "The camera token is valid."}
NOT_VALID = {"valid": False, "message": "The camera token is not valid."}
JSON = {"Content-Type": "application/json"}


def published(camera: Camera) -> PublishedCamera:
    """The same camera with the published client's software."""
    return PublishedCamera(camera.serial, camera.nuc_hash, camera.table_keys)


@pytest.fixture
def camera(client: httpx2.Client) -> PublishedCamera:
    """A provisioned camera that runs the published client."""
    return published(Camera.provisioned(client, new_serial()))


def reason_of(running: Running, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What the audit trail has of a token."""
    token = body["camera_token"]
    return running.rows(
        "SELECT validation_result, reason, device_serial, key_index FROM validation_history"
        " WHERE encrypted_nuc_hash = ?",
        bytes.fromhex(token["ciphertext"] + token["auth_tag"]),
    )


def test_the_derivation_is_the_published_one() -> None:
    """The camera of these tests is judged by the vectors first."""
    cases = json.loads((VECTORS / "key_derivation_published_clients.json").read_text())["tests"]
    assert cases
    for case in cases:
        key = published_key(bytes.fromhex(case["masterKey"]), case["keyIndex"])
        assert key.hex() == case["derivedKey"]


def test_a_genuine_token_is_valid_and_recorded(
    client: httpx2.Client, running: Running, camera: PublishedCamera
) -> None:
    for index in (0, 999, None, None):
        body = camera.body(index)
        response = client.post(PUBLISHED, json=body)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json() == VALID
        drawn = body["camera_token"]["key_index"]
        assert reason_of(running, body) == [("PASS", "genuine", camera.serial, drawn)]


def test_byte_for_byte_as_they_speak(running: Running, camera: PublishedCamera) -> None:
    """A request spelt out on a raw socket, with the fields in their order."""
    place = urlsplit(running.server.url)
    body = json.dumps(camera.body()).encode()
    head = (
        f"POST /validate HTTP/1.1\r\nHost: {place.netloc}\r\nAccept: */*\r\n"
        "Accept-Encoding: gzip, deflate\r\nConnection: close\r\nUser-Agent: python-httpx/0.28.1\r\n"
        f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
    )
    with socket.create_connection((place.hostname, place.port or 80), timeout=30) as opened:
        opened.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: opened.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'\r\n\r\n{"valid":true,"message":"The camera token is valid."}')


def test_neither_derivation_opens_the_others_door(client: httpx2.Client, running: Running) -> None:
    """Threat 14: a token is opened under the derivation of the address that it came to, alone."""
    normative = Camera.provisioned(client, new_serial())
    token = normative.token()
    sealed = token.encrypted_nuc_hash.hex()
    spelt = wire(token) | {"ciphertext": sealed[:64], "auth_tag": sealed[64:]}
    del spelt["encrypted_nuc_hash"]
    as_published = {"camera_token": spelt, "manufacturer_authority_id": ""}
    assert client.post(PUBLISHED, json=as_published).json() == NOT_VALID
    theirs = published(normative).body(5)["camera_token"]
    as_normative = {
        "encrypted_nuc_hash": theirs["ciphertext"] + theirs["auth_tag"],
        **{name: theirs[name] for name in ("table_id", "key_index", "nonce")},
    }
    assert client.post(VALIDATE, json=as_normative).json()["validation_result"] == "FAIL"
    assert client.post(VALIDATE, json=wire(token)).json()["validation_result"] == "PASS"


def test_every_fail_is_told_alike(client: httpx2.Client, running: Running) -> None:
    """Threat 18: why a token is not valid stands in the audit trail, and in no answer."""
    camera, stopped = (published(Camera.provisioned(client, new_serial())) for _ in range(2))
    with running.database() as database:
        suspend_device(database, stopped.serial)
    unknown = PublishedCamera("nobody", bytes(range(32)), camera.master_keys)
    wrong = PublishedCamera("nobody", camera.nuc_hash, dict.fromkeys(camera.master_keys, bytes(32)))
    [*foreign_tables] = {0, 1, 2, 3} - camera.master_keys.keys()
    bodies = {
        "not_opened": wrong.body(),
        "unknown_device": unknown.body(),
        "device_suspended": stopped.body(),
    }
    altered = camera.body()
    altered["camera_token"]["table_id"] = foreign_tables[0]
    answers = set()
    for reason, body in [*bodies.items(), ("not_opened", altered)]:
        response = client.post(PUBLISHED, json=body)
        assert response.status_code == 200
        answers.add(response.content)
        [(verdict, recorded, _, _)] = reason_of(running, body)
        assert (verdict, recorded) == ("FAIL", reason)
    assert [json.loads(each) for each in answers] == [NOT_VALID]


def _broken() -> dict[str, tuple[str, Any]]:
    """Field, and what it must refuse."""
    return {
        "short ciphertext": ("ciphertext", "ab" * 31),
        "ciphertext with its tag": ("ciphertext", "ab" * 48),
        "no hex": ("auth_tag", "g" * 32),
        "long tag": ("auth_tag", "ab" * 32),
        "long nonce": ("nonce", "ab" * 64),
        "no table": ("table_id", 2_500),
        "negative table": ("table_id", -1),
        "no index": ("key_index", 1_000),
        "big": ("key_index", 2**64),
        "text": ("table_id", "7"),
        "true": ("key_index", True),
        "null": ("nonce", None),
    }


@pytest.mark.parametrize("name", _broken())
def test_what_is_malformed_is_422_and_not_recorded(
    sqlite_client: httpx2.Client, running_on_sqlite: Running, name: str
) -> None:
    """Threats 15, 16 and 21."""
    field, value = _broken()[name]
    camera = published(Camera.provisioned(sqlite_client, new_serial()))
    before = running_on_sqlite.count("validation_history")
    response = sqlite_client.post(PUBLISHED, json=camera.body(**{field: value}))
    assert fields_of(assert_problem(response, 422)) == {f"camera_token.{field}"}
    assert running_on_sqlite.count("validation_history") == before


@pytest.mark.parametrize(
    "change",
    [
        {"camera_token": None},
        {"camera_token": []},
        {"manufacturer_authority_id": None},
        {"manufacturer_authority_id": "x" * 257},
        {"image_hash": "ab" * 32},
    ],
    ids=str,
)
def test_the_frame_is_checked_too(sqlite_client: httpx2.Client, change: dict[str, Any]) -> None:
    """Threat 1: an image hash has no business here, and is refused rather than overlooked."""
    camera = published(Camera.provisioned(sqlite_client, new_serial()))
    response = sqlite_client.post(PUBLISHED, json=camera.body() | change)
    assert fields_of(assert_problem(response, 422)) == set(change)


@pytest.mark.parametrize("content", [b"", b"null", b"{", b"[" * 30_000, b'{"camera_token":1,' * 2])
def test_what_is_no_json_is_422(sqlite_client: httpx2.Client, content: bytes) -> None:
    assert_problem(sqlite_client.post(PUBLISHED, content=content, headers=JSON), 422)


def test_other_methods_are_405(sqlite_client: httpx2.Client) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert_problem(sqlite_client.request(method, PUBLISHED), 405)
