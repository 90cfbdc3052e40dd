"""POST /validate: what the Birthmark project's published clients send, and what they are told."""

import base64
import json
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import update

from birthmark_sma.storage.schema.devices import registered_devices
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.cameras.colliding_tokens import forge
from tests.support.cameras.published_camera import PublishedCamera, published_key
from tests.support.devices.acts import suspend_device
from tests.support.problems import assert_problem
from tests.support.programs.running import Running, new_serial

PUBLISHED = "/validate"
LEGACY = "/validate-legacy"
VECTORS = Path(__file__).parents[4] / "vectors"
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
    """Field, and what it must not take for a token."""
    return {
        "short ciphertext": ("ciphertext", "ab" * 31),
        "ciphertext with its tag": ("ciphertext", "ab" * 48),
        "no hex": ("auth_tag", "g" * 32),
        "long tag": ("auth_tag", "ab" * 32),
        "long nonce": ("nonce", "ab" * 64),
        "negative table": ("table_id", -1),
        "big": ("key_index", 2**64),
        "text": ("table_id", "7"),
        "true": ("key_index", True),
        "null": ("nonce", None),
    }


@pytest.mark.parametrize("name", _broken())
def test_what_is_malformed_is_not_valid_and_not_recorded(
    sqlite_client: httpx2.Client, running_on_sqlite: Running, name: str
) -> None:
    """Threats 15 and 16: these clients would store any other status as a verdict of invalid."""
    field, value = _broken()[name]
    camera = published(Camera.provisioned(sqlite_client, new_serial()))
    before = running_on_sqlite.count("validation_history")
    response = sqlite_client.post(PUBLISHED, json=camera.body(**{field: value}))
    assert response.status_code == 200
    assert response.json()["valid"] is False
    assert response.json()["message"].startswith(
        f"The request is malformed: camera_token.{field}: "
    )
    assert running_on_sqlite.count("validation_history") == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("table_id", 2_500, "unknown_table"),
        ("table_id", 2**31 - 1, "unknown_table"),
        ("key_index", 1_000, "unknown_key_index"),
    ],
)
def test_an_unknown_address_is_not_valid_and_recorded(
    client: httpx2.Client, running: Running, field: str, value: int, reason: str
) -> None:
    body = published(Camera.provisioned(client, new_serial())).body(**{field: value})
    answer = client.post(PUBLISHED, json=body)
    assert (answer.status_code, answer.json()["valid"]) == (200, False)
    [(verdict, recorded, _, _)] = reason_of(running, body)
    assert (verdict, recorded) == ("FAIL", reason)


@pytest.mark.parametrize(
    "change",
    [
        {"manufacturer_authority_id": None},
        {"manufacturer_authority_id": 7},
        {"manufacturer_authority_id": "x" * 257},
        {"image_hash": "ab" * 32},
        {"gps": {"deep": [[[[]]]]}},
    ],
    ids=str,
)
def test_unknown_members_are_ignored(sqlite_client: httpx2.Client, change: dict[str, Any]) -> None:
    body = published(Camera.provisioned(sqlite_client, new_serial())).body() | change
    body["camera_token"]["version"] = 2
    answer = sqlite_client.post(PUBLISHED, json=body)
    assert (answer.status_code, answer.json()) == (200, VALID)


def test_the_authority_id_may_be_missing(sqlite_client: httpx2.Client) -> None:
    body = published(Camera.provisioned(sqlite_client, new_serial())).body()
    del body["manufacturer_authority_id"]
    assert sqlite_client.post(PUBLISHED, json=body).json() == VALID


@pytest.mark.parametrize("body", [{}, {"camera_token": None}, {"camera_token": []}], ids=str)
def test_an_object_without_a_token_is_not_valid(
    sqlite_client: httpx2.Client, body: dict[str, Any]
) -> None:
    for path in (PUBLISHED, LEGACY):
        answer = sqlite_client.post(path, json=body)
        assert (answer.status_code, answer.json()["valid"]) == (200, False)


def legacy_row(running: Running, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What the audit trail has of a packed token."""
    packed = base64.b64decode(bytes.fromhex(body["ciphertext"]))
    return running.rows(
        "SELECT validation_result, reason, device_serial, table_id, key_index, repeat"
        " FROM validation_history WHERE encrypted_nuc_hash = ? ORDER BY id",
        packed[:32] + packed[44:],
    )


def test_a_packed_token_passes_under_each_of_its_tables(
    client: httpx2.Client, running: Running, camera: PublishedCamera
) -> None:
    """One audit row each, which names the table whose key opened it."""
    for table in camera.master_keys:
        body, index = camera.legacy_body(table)
        answer = client.post(LEGACY, json=body)
        assert (answer.status_code, answer.json()) == (200, VALID)
        assert legacy_row(running, body) == [("PASS", "genuine", camera.serial, table, index, None)]


def test_a_packed_token_is_one_token_at_both_addresses(
    client: httpx2.Client, running: Running, camera: PublishedCamera
) -> None:
    """Threat 17: neither other decoys nor the other form make it a token that is seen first."""
    table = min(camera.master_keys)
    body, index = camera.legacy_body(table)
    packed = base64.b64decode(bytes.fromhex(body["ciphertext"]))
    position = body["table_references"].index(table)
    decoys = [index if place == position else (index + 7) % 1_000 for place in range(3)]
    spelt = {
        "ciphertext": packed[:32].hex(),
        "nonce": packed[32:44].hex(),
        "auth_tag": packed[44:].hex(),
        "table_id": table,
        "key_index": index,
    }
    assert client.post(LEGACY, json=body).json() == VALID
    assert client.post(LEGACY, json=body | {"key_indices": decoys}).json() == VALID
    assert client.post(PUBLISHED, json={"camera_token": spelt}).json() == VALID
    repeats = [row[-1] for row in legacy_row(running, body)]
    assert repeats == [None, "replayed", "replayed"]


def test_a_packed_token_goes_by_every_rule(client: httpx2.Client, running: Running) -> None:
    """Threats 14 and 18: one shape for every reason, each told in the audit trail alone."""
    camera, stopped, other = (published(Camera.provisioned(client, new_serial())) for _ in range(3))
    with running.database() as database:
        suspend_device(database, stopped.serial)
    stranger = PublishedCamera("nobody", bytes(range(32)), camera.master_keys)
    thief = PublishedCamera("nobody", other.nuc_hash, camera.master_keys)
    wrong = PublishedCamera("nobody", camera.nuc_hash, dict.fromkeys(camera.master_keys, bytes(32)))
    [foreign] = sorted(camera.master_keys.keys() - other.master_keys.keys())[:1]
    bodies = {
        "not_opened": wrong.legacy_body()[0],
        "unknown_device": stranger.legacy_body()[0],
        "device_suspended": stopped.legacy_body()[0],
        "table_not_assigned": thief.legacy_body(foreign)[0],
    }
    for reason, body in bodies.items():
        answer = client.post(LEGACY, json=body)
        assert (answer.status_code, answer.json()) == (200, NOT_VALID)
        [(verdict, recorded, *_)] = legacy_row(running, body)
        assert (verdict, recorded) == ("FAIL", reason)


def test_a_packed_token_that_two_keys_open_is_not_valid(
    client: httpx2.Client, running: Running, camera: PublishedCamera
) -> None:
    """Threat 42: GCM does not commit to its key, and an honest camera seals under one."""
    tables = sorted(camera.master_keys)
    indices = [5, 77, 901]
    keys = [published_key(camera.master_keys[tables[at]], indices[at]) for at in (0, 1)]
    nonce = secrets.token_bytes(12)
    sealed = forge(keys, nonce)
    serial = new_serial()
    Camera.provisioned(client, serial, nuc_hash=AESGCM(keys[0]).decrypt(nonce, sealed, None).hex())
    with running.database() as database, database.write() as transaction:
        transaction.execute(
            update(registered_devices)
            .where(registered_devices.c.device_serial == serial)
            .values(table_assignments=tables)
        )
    text = base64.b64encode(sealed[:32] + nonce + sealed[32:])
    body = {"ciphertext": text.hex(), "table_references": tables, "key_indices": indices}
    assert client.post(LEGACY, json=body).json() == NOT_VALID
    assert client.post(LEGACY, json=body | {"key_indices": [5, 78, 901]}).json() == VALID
    reasons = [row[1] for row in legacy_row(running, body)]
    assert reasons == ["opened_twice", "genuine"]


def test_a_key_named_three_times_is_one_key(
    client: httpx2.Client, running: Running, camera: PublishedCamera
) -> None:
    body, index = camera.legacy_body(min(camera.master_keys))
    thrice = {
        "ciphertext": body["ciphertext"],
        "table_references": [min(camera.master_keys)] * 3,
        "key_indices": [index] * 3,
    }
    assert client.post(LEGACY, json=thrice).json() == VALID


@pytest.mark.parametrize(
    "change",
    [
        {"ciphertext": "61" * 79},
        {"ciphertext": "2e" * 80},
        {"ciphertext": "ff" * 80},
        {"ciphertext": "zz" * 80},
        {"ciphertext": "61" * 79 + "3d"},
        {"ciphertext": None},
        {"table_references": [0, 1]},
        {"table_references": [0, 1, 2, 3]},
        {"table_references": [0, 1, -1]},
        {"table_references": "012"},
        {"key_indices": [0, 1, 2**31]},
        {"key_indices": [0, 1, "2"]},
    ],
    ids=str,
)
def test_a_packed_token_that_is_malformed_is_not_valid(
    sqlite_client: httpx2.Client, running_on_sqlite: Running, change: dict[str, Any]
) -> None:
    """Threat 16."""
    camera = published(Camera.provisioned(sqlite_client, new_serial()))
    before = running_on_sqlite.count("validation_history")
    answer = sqlite_client.post(LEGACY, json=camera.legacy_body()[0] | change)
    assert (answer.status_code, answer.json()["valid"]) == (200, False)
    assert answer.json()["message"].startswith("The request is malformed: ")
    assert running_on_sqlite.count("validation_history") == before


@pytest.mark.parametrize("path", ["/validate-cert", "/validate-cert-legacy"])
def test_certificate_bundles_are_not_supported(sqlite_client: httpx2.Client, path: str) -> None:
    """Threat 20: they would tell an image hash, so the answer comes before the body is read."""
    answer = sqlite_client.post(path, json={"camera_cert": "", "image_hash": "ab" * 32})
    assert assert_problem(answer, 410)["detail"].startswith("This authority does not validate")


@pytest.mark.parametrize("content", [b"", b"null", b"{", b"[" * 30_000, b'{"camera_token":1,' * 2])
def test_what_is_no_json_is_422(sqlite_client: httpx2.Client, content: bytes) -> None:
    """Threat 21."""
    for path in (PUBLISHED, LEGACY):
        assert_problem(sqlite_client.post(path, content=content, headers=JSON), 422)


def test_other_methods_are_405(sqlite_client: httpx2.Client) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert_problem(sqlite_client.request(method, PUBLISHED), 405)
