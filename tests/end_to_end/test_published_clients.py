"""The published Raspberry Pi client and submission server, beside a prototype authority."""

import json
import secrets
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES
from tests.end_to_end.conftest import Start
from tests.support.camera import Camera
from tests.support.collector import collecting
from tests.support.commands import sma
from tests.support.problems import assert_problem
from tests.support.published_camera import PublishedCamera
from tests.support.redis import Redis
from tests.support.running import new_serial

SERIAL = "RaspberryPi-Prototype-001"
SIZES = {
    "SMA_TABLES": str(PROTOTYPE_SIZES.tables),
    "SMA_KEYS_PER_TABLE": str(PROTOTYPE_SIZES.keys_per_table),
}
"""The prototype's, without its port, which another test may have."""


def test_a_prototype_from_its_file_to_a_verdict(start_server: Start, tmp_path: Path) -> None:
    """The file alone is enough, and any index that the client draws passes: it draws of 1,000."""
    running = start_server(**SIZES)
    output = tmp_path / "pi-001"
    made = sma(
        *("provision", SERIAL, "--output-dir", str(output)),
        environ=running.environ,
    )
    assert made.returncode == 0, made.stderr
    camera = PublishedCamera.load(output / "provisioning_data.json")
    with running.client() as client:
        for index in (0, 99, 100, 999, None, None):
            answer = client.post("/validate", json=camera.body(index))
            assert (answer.status_code, answer.json()["valid"]) == (200, True)
        unknown = client.post("/validate", json=camera.body(table_id=2_499))
    assert (unknown.status_code, unknown.json()) == (
        200,
        {"valid": False, "message": "Unknown table ID"},
    )
    assert running.count("validation_history") == 7
    assert running.count("key_tables") == 10
    assert_loadable(json.loads((output / "provisioning_data.json").read_text()))


def test_their_tokens_go_by_the_same_rules_as_all(start_server: Start, redis: Redis) -> None:
    """Threats 17 and 23: replays refused, limits shared, and traced, in front of one server."""
    caller, other = (f"127.8.{secrets.randbelow(256)}.{last}" for last in (1, 2))
    with collecting() as collector:
        running = start_server(
            *("--replay", "refuse-same-caller", "--rate-validate", "4/hour"),
            *("--traces-url", collector.url),
            SMA_RATE_STORE=redis.url,
            OTEL_BSP_SCHEDULE_DELAY="100",
        )
        with running.client(caller) as client, running.client(other) as second:
            camera = Camera.provisioned(client, new_serial())
            body = PublishedCamera(camera.serial, camera.nuc_hash, camera.table_keys).body()
            first = client.post("/validate", json=body, headers={"X-Request-ID": "first"})
            again = client.post("/validate", json=body, headers={"X-Request-ID": "again"})
            elsewhere = second.post("/validate", json=body)
            for answer in (first, elsewhere):
                assert (answer.status_code, answer.json()["valid"]) == (200, True)
            assert_problem(again, 409)
            assert again.json()["type"].endswith(":token-already-submitted")
            assert "valid" not in again.json()
            nonce = body["camera_token"]["nonce"]
            assert client.post("/validate", json={"camera_token": nonce}).status_code == 422
            assert client.post("/validate", json=body).status_code == 409
            limited = client.post("/validate", json=body)
            assert_problem(limited, 429)
            assert int(limited.headers["Retry-After"]) > 0
        assert running.server.terminate() == 0
        spans = {span.attributes.get("sma.request_id"): span for span in collector.spans}
    steps = {"parse", "limit", "wait", "open", "settle", "commit"}
    for name, status in (("first", 200), ("again", 409)):
        assert spans[name].name == "POST /validate"
        assert spans[name].attributes["http.response.status_code"] == status
        assert collector.below(spans[name]).keys() == steps
    repeats = running.rows("SELECT repeat FROM validation_history ORDER BY id")
    assert [repeat for (repeat,) in repeats] == [None, "replayed", "dual_submission", "replayed"]
    assert str(redis.ask("KEYS", "*")).count(caller), "the limit was not counted in the store"


def assert_loadable(data: dict[str, Any]) -> None:
    """A P-256 key in PKCS#8, and one PEM text for the chain, each fit for the other."""
    assert data["device_family"] == "Raspberry Pi"
    assert data["device_private_key"].startswith("-----BEGIN PRIVATE KEY-----\n")
    key = load_pem_private_key(data["device_private_key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    certificate, intermediate, root = x509.load_pem_x509_certificates(
        data["certificate_chain"].encode()
    )
    assert certificate.public_key() == key.public_key()
    intermediate.verify_directly_issued_by(root)
