"""POST /api/v1/validate/nuc: verdicts, and that no answer tells why a token failed."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.devices.acts import revoke_device, suspend_device
from tests.support.problems import assert_problem, fields_of
from tests.support.programs.running import AuditRow, Running, new_serial
from tests.support.programs.server import Server

VECTORS = json.loads((Path(__file__).parents[4] / "vectors" / "camera_token.json").read_text())
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
JSON = {"Content-Type": "application/json"}
UNKNOWN_TO_NOBODY = bytes(range(32))


@dataclass(frozen=True)
class Kind:
    """A way for a well-formed token to fail: how to make one, and what the audit trail says."""

    reason: str
    make: Callable[[], CameraToken]
    serial: str | None


def _flipped(token: CameraToken, position: int) -> CameraToken:
    altered = bytearray(token.encrypted_nuc_hash)
    altered[position] ^= 1
    return replace(token, encrypted_nuc_hash=bytes(altered))


def fail_kinds(running: Running) -> dict[str, Kind]:
    """Every kind of FAIL that must look alike. Devices of its own, one suspended, one revoked."""
    with running.client() as client:
        cameras = [Camera.provisioned(client, new_serial()) for _ in range(3)]
        foreign = next(iter(set(Camera.provisioned(client, new_serial()).table_keys.items())))
        while foreign[0] in cameras[0].table_keys:
            other = Camera.provisioned(client, new_serial())
            foreign = next(iter(set(other.table_keys.items())))
    active, suspended, revoked = cameras
    with running.database() as database:
        suspend_device(database, suspended.serial)
        revoke_device(database, revoked.serial, "key_compromise")
    table, key = foreign

    return {
        "wrong key": Kind("not_opened", lambda: active.token(master_key=bytes(32)), None),
        "altered tag": Kind("not_opened", lambda: _flipped(active.token(), 47), None),
        "altered ciphertext": Kind("not_opened", lambda: _flipped(active.token(), 0), None),
        "altered nonce": Kind("not_opened", lambda: replace(active.token(), nonce=bytes(12)), None),
        "other index": Kind("not_opened", lambda: replace(active.token(), key_index=8), None),
        "unknown device": Kind(
            "unknown_device", lambda: active.token(nuc_hash=UNKNOWN_TO_NOBODY), None
        ),
        "foreign table": Kind(
            "table_not_assigned", lambda: active.token(table, master_key=key), active.serial
        ),
        "suspended": Kind("device_suspended", suspended.token, suspended.serial),
        "revoked": Kind("device_revoked", revoked.token, revoked.serial),
    }


@pytest.fixture
def camera(client: httpx2.Client) -> Camera:
    """A provisioned camera."""
    return Camera.provisioned(client, new_serial())


# --- PASS


def test_a_genuine_token_passes(client: httpx2.Client, running: Running, camera: Camera) -> None:
    """Threat 25: the timestamp names its zone, and so does the audit row."""
    token = camera.token()
    before = datetime.now(UTC) - timedelta(seconds=1)
    response = client.post(VALIDATE, json=wire(token))
    after = datetime.now(UTC) + timedelta(seconds=1)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == [
        "validation_result",
        "manufacturer_id",
        "device_family",
        "device_serial",
        "timestamp",
    ]
    assert answer["validation_result"] == "PASS"
    assert answer["manufacturer_id"] == "SimulatedMfg"
    assert answer["device_family"] == "Test"
    assert answer["device_serial"] == camera.serial
    assert RFC_3339.fullmatch(answer["timestamp"])
    assert before <= datetime.fromisoformat(answer["timestamp"]) <= after
    assert running.audit_rows(token) == [
        AuditRow("PASS", "genuine", camera.serial, "127.0.0.1", token.table_id, token.key_index)
    ]
    [(recorded,)] = running.rows(
        "SELECT validated_at FROM validation_history WHERE encrypted_nuc_hash = ?",
        token.encrypted_nuc_hash,
    )
    moment = datetime.fromisoformat(recorded) if isinstance(recorded, str) else recorded
    assert moment.tzinfo is not None
    assert before <= moment <= after


def test_every_table_of_the_device_passes_at_both_ends(
    client: httpx2.Client, camera: Camera
) -> None:
    for table in camera.table_keys:
        for index in (0, 999):
            answer = client.post(VALIDATE, json=wire(camera.token(table, index))).json()
            assert answer["validation_result"] == "PASS"


def test_hex_is_taken_in_either_case(client: httpx2.Client, camera: Camera) -> None:
    body = wire(camera.token())
    for change in (str.upper, str.lower, str.title):
        spelt = {k: change(v) if isinstance(v, str) else v for k, v in body.items()}
        assert client.post(VALIDATE, json=spelt).json()["validation_result"] == "PASS"


def test_dual_submission_gets_the_same_answer(
    client: httpx2.Client, running: Running, camera: Camera
) -> None:
    """Each submission is in the audit trail, with the address that it came from."""
    token = camera.token()
    with running.client("127.0.0.2") as second:
        answers = [c.post(VALIDATE, json=wire(token)).json() for c in (client, second, client)]
    for answer in answers:
        assert answer | {"timestamp": None} == answers[0] | {"timestamp": None}
    came_from = [row.request_ip for row in running.audit_rows(token)]
    assert came_from == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]


def test_an_address_that_a_caller_claims_is_not_believed(
    client: httpx2.Client, running: Running, camera: Camera
) -> None:
    """Another program on the machine is no proxy: what it says of its caller is not evidence."""
    token = camera.token()
    client.post(VALIDATE, json=wire(token), headers={"X-Forwarded-For": "9.9.9.9"})
    assert [row.request_ip for row in running.audit_rows(token)] == ["127.0.0.1"]


# --- FAIL


def test_every_fail_looks_the_same(client: httpx2.Client, running: Running) -> None:
    """Threats 6, 14, 15 and 18. Threat 6: a revoked device does not pass.

    Threat 14: the device is found by its NUC hash, and the table must be its own.
    Threat 15: each failure is a 200 and in the audit trail, with its reason.
    Threat 18: status, headers and body are the same to the byte, but for the time.
    """
    seen = set()
    for name, kind in fail_kinds(running).items():
        token = kind.make()
        response = client.post(VALIDATE, json=wire(token), headers={"X-Request-ID": "the-same"})
        assert response.status_code == 200, name
        answer = response.json()
        assert answer["validation_result"] == "FAIL", name
        assert RFC_3339.fullmatch(answer["timestamp"])
        body = response.content.replace(answer["timestamp"].encode(), b"")
        headers = {k: v for k, v in response.headers.items() if k != "date"}
        seen.add((body, tuple(headers.items())))
        assert [
            (row.validation_result, row.reason, row.device_serial)
            for row in running.audit_rows(token)
        ] == [("FAIL", kind.reason, kind.serial)], name
    assert len(seen) == 1
    [(body, _)] = seen
    assert json.loads(body) == {
        "validation_result": "FAIL",
        "manufacturer_id": "SimulatedMfg",
        "device_family": None,
        "device_serial": None,
        "timestamp": "",
    }


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("table_id", (2_500, 9_999, 123_456, 2**31 - 1)),
        ("key_index", (1_000, 123_456, 2**31 - 1)),
    ],
)
def test_an_unknown_address_is_400_fail_and_recorded(
    client: httpx2.Client,
    running: Running,
    camera: Camera,
    part: str,
    values: tuple[int, ...],
) -> None:
    """Threats 14 and 15. Threat 14: key index 123456 does not pass."""
    error, reason = {
        "table_id": ("Unknown table ID", "unknown_table"),
        "key_index": ("Unknown key index", "unknown_key_index"),
    }[part]
    for value in values:
        token = replace(camera.token(), **{part: value})  # type: ignore[arg-type]
        document = assert_problem(client.post(VALIDATE, json=wire(token)), 400)
        assert document["validation_result"] == "FAIL"
        assert document["error"] == error
        assert "device_serial" not in document
        [row] = running.audit_rows(token)
        assert (row.validation_result, row.reason, row.device_serial) == ("FAIL", reason, None)
        assert getattr(row, part) == value


# --- malformed


def _bad_values() -> Iterator[tuple[str, object]]:
    """What each field must refuse: wrong types, lengths, ranges, and everything coercible."""
    for field in ("table_id", "key_index"):
        for number in (-1, -(2**31), 2**31, 2**32, 2**63, 2**64, 10**30):
            yield field, number
        mistyped: list[object] = [
            "5",
            5.0,
            5.5,
            True,
            False,
            None,
            [],
            [5],
            {},
            "",
            "0x5",
            "\u0665",
        ]
        yield from ((field, value) for value in mistyped)
    for field, digits in (("encrypted_nuc_hash", 96), ("nonce", 24)):
        for length in (0, 1, digits - 2, digits - 1, digits + 1, digits + 2, 128):
            yield field, "a" * length
        for tail in ("g", " ", "\n", "\0", "-", "\uff11"):
            yield field, "a" * (digits - 1) + tail
        yield field, "0x" + "a" * (digits - 2)
        yield field, " ".join(["aa"] * (digits // 3))
        others: list[object] = [None, 5, True, [], {}, ["aa"]]
        yield from ((field, value) for value in others)


@pytest.mark.parametrize(("field", "value"), list(_bad_values()))
def test_a_malformed_field_is_422_and_not_recorded(
    sqlite_client: httpx2.Client, running_on_sqlite: Running, field: str, value: object
) -> None:
    """Threats 15 and 16. Threat 16: a 64-byte nonce is refused, and nothing is coerced."""
    before = running_on_sqlite.count("validation_history")
    body = {"encrypted_nuc_hash": "ab" * 48, "table_id": 1, "key_index": 1, "nonce": "cd" * 12}
    document = assert_problem(sqlite_client.post(VALIDATE, json=body | {field: value}), 422)
    assert fields_of(document) == {field}
    assert running_on_sqlite.count("validation_history") == before


@pytest.mark.parametrize("field", ["encrypted_nuc_hash", "table_id", "key_index", "nonce"])
def test_a_missing_field_is_422_and_named(sqlite_client: httpx2.Client, field: str) -> None:
    body = {"encrypted_nuc_hash": "ab" * 48, "table_id": 1, "key_index": 1, "nonce": "cd" * 12}
    del body[field]
    assert fields_of(assert_problem(sqlite_client.post(VALIDATE, json=body), 422)) == {field}


GOOD = json.dumps(
    {"encrypted_nuc_hash": "ab" * 48, "table_id": 1, "key_index": 1, "nonce": "cd" * 12}
)
BROKEN_BODIES = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "list-of-one": f"[{GOOD}]".encode(),
    "extra-field": GOOD.replace("{", '{"device_serial": "x", ').encode(),
    "extra-surrogate": GOOD.replace("{", '{"\\ud800": 1, ').encode(),
    "extra-NUL": GOOD.replace("{", '{"\\u0000": 1, ').encode(),
    "NaN": GOOD.replace('"table_id": 1', '"table_id": NaN').encode(),
    "float": GOOD.replace('"table_id": 1', '"table_id": 1.0').encode(),
    "exponent": GOOD.replace('"table_id": 1', '"table_id": 1e0').encode(),
    "minus-zero": GOOD.replace('"table_id": 1', '"table_id": -0.0').encode(),
    "2^63": GOOD.replace('"table_id": 1', f'"table_id": {2**63}').encode(),
    "huge-integer": GOOD.replace('"table_id": 1', f'"table_id": {"9" * 5_000}').encode(),
    "deep": b"[" * 30_000,
    "deep-field": GOOD.replace('"table_id": 1', f'"table_id": {"[" * 9_000}').encode(),
    "invalid-UTF-8": GOOD.encode().replace(b"abab", b"\xff\xfe", 1),
    "BOM": GOOD.encode("utf-8-sig"),
    "UTF-16": GOOD.encode("utf-16"),
    "truncated": GOOD[:-1].encode(),
    "trailing": (GOOD + ",").encode(),
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_a_broken_body_is_422_and_not_recorded(
    client: httpx2.Client, running: Running, name: str
) -> None:
    """Threat 21: neither database sees NUL, surrogates, big numbers, deep or huge JSON."""
    before = running.count("validation_history")
    assert_problem(client.post(VALIDATE, content=BROKEN_BODIES[name], headers=JSON), 422)
    assert running.count("validation_history") == before


def test_a_field_given_twice_is_422(sqlite_client: httpx2.Client) -> None:
    """Threat 21: parsers disagree on which of two equal names counts (RFC 8259, section 4)."""
    twice = GOOD.replace("{", '{"table_id": 2, ', 1).encode()
    assert_problem(sqlite_client.post(VALIDATE, content=twice, headers=JSON), 422)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case["tcId"]))
        for case in VECTORS["tests"]
        if case["result"] != "valid"
    ],
)
def test_no_published_bad_vector_passes(sqlite_client: httpx2.Client, case: dict[str, Any]) -> None:
    """A malformed case is 422, or 400 where only its address is unknown; an invalid one is FAIL."""
    body = {
        "encrypted_nuc_hash": case["encryptedNucHash"],
        "table_id": 1,
        "key_index": case["keyIndex"],
        "nonce": case["nonce"],
    }
    response = sqlite_client.post(VALIDATE, json=body)
    if case["result"] == "invalid":
        assert response.status_code == 200
        assert response.json()["validation_result"] == "FAIL"
    else:
        well_formed = re.fullmatch("[0-9a-f]{96}", case["encryptedNucHash"]) and re.fullmatch(
            "[0-9a-f]{24}", case["nonce"]
        )
        addressed = 0 <= case["keyIndex"] < 2**31
        assert_problem(response, 400 if well_formed and addressed else 422)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(sqlite_client: httpx2.Client, chunked: bool) -> None:
    """Threat 16: bodies are bounded, with and without a Content-Length."""
    content = iter([b" " * 1_000] * 70) if chunked else b" " * 70_000
    assert_problem(sqlite_client.post(VALIDATE, content=content, headers=JSON), 413)


def test_a_body_that_is_not_declared_json_is_415(sqlite_client: httpx2.Client) -> None:
    headers = {"Content-Type": "text/plain"}
    assert_problem(sqlite_client.post(VALIDATE, content=GOOD.encode(), headers=headers), 415)


# --- what the caller is told


@pytest.mark.parametrize(
    ("disclosure", "family", "serial"),
    [("serial", True, True), ("family", True, False), ("none", False, False)],
)
def test_disclosure_decides_what_a_pass_tells(
    running_on_sqlite: Running, disclosure: str, family: bool, serial: bool
) -> None:
    """Threat 20: the serial is told only as far as the setting says; the audit trail has it."""
    environ = {"SMA_DISCLOSURE": disclosure, "SMA_MANUFACTURER_ID": "Another Mfg"}
    with (
        Server(running_on_sqlite.server.data_dir, environ=environ) as server,
        server.client() as client,
    ):
        camera = Camera.provisioned(client, new_serial())
        token = camera.token()
        answer = client.post(VALIDATE, json=wire(token)).json()
        failed = client.post(VALIDATE, json=wire(camera.token(nuc_hash=bytes(32)))).json()
    assert answer["validation_result"] == "PASS"
    assert answer["manufacturer_id"] == failed["manufacturer_id"] == "Another Mfg"
    assert answer["device_family"] == ("Test" if family else None)
    assert answer["device_serial"] == (camera.serial if serial else None)
    assert failed["device_family"] is failed["device_serial"] is None
    assert [row.device_serial for row in running_on_sqlite.audit_rows(token)] == [camera.serial]
