"""The published Raspberry Pi client and submission server, beside a prototype authority."""

import json
import secrets
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy import update

from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.config import Settings, load_settings
from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.schema.devices import registered_devices
from birthmark_sma.storage.schema.key_tables import key_tables
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import Camera
from tests.support.cameras.published_camera import PublishedCamera
from tests.support.databases.redis import Redis
from tests.support.http.trace_collector import collecting
from tests.support.problems import assert_problem
from tests.support.programs.commands import sma
from tests.support.programs.running import new_serial
from tests.support.programs.server import server_environ

CASES = Path(__file__).parent / "published_legacy.json"
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
            packed, _ = camera.legacy_body()
            answer = client.post("/validate-legacy", json=packed)
            assert (answer.status_code, answer.json()["valid"]) == (200, True)
        unknown = client.post("/validate", json=camera.body(table_id=2_499))
    assert (unknown.status_code, unknown.json()) == (
        200,
        {"valid": False, "message": "Unknown table ID"},
    )
    assert running.count("validation_history") == 13
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
            malformed = client.post("/validate", json={"camera_token": nonce})
            assert (malformed.status_code, malformed.json()["valid"]) == (200, False)
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


def test_packed_tokens_that_were_made_elsewhere(
    start_server: Start, database_url: str, tmp_path: Path
) -> None:
    """An authority of `sma init --published`, and tokens that no Python program sealed."""
    given = json.loads(CASES.read_text())
    environ = server_environ(tmp_path / "data", None if "sqlite" in database_url else database_url)
    made = sma("init", "--published", "--json", environ=environ)
    assert made.returncode == 0, made.stderr
    sizes = json.loads(made.stdout)
    assert (sizes["tables"], sizes["keys_per_table"]) == (250, 1_000)
    keys = {int(table): bytes.fromhex(key) for table, key in given["device"]["master_keys"].items()}
    plant_master_keys(load_settings({}, environ), keys)
    running = start_server(SMA_TABLES="250")
    with running.client() as client:
        serial = new_serial()
        Camera.provisioned(client, serial, nuc_hash=given["device"]["nuc_hash"])
        with running.database() as database, database.write() as transaction:
            transaction.execute(
                update(registered_devices)
                .where(registered_devices.c.device_serial == serial)
                .values(table_assignments=sorted(keys))
            )
        for case in given["cases"]:
            answer = client.post("/validate-legacy", json=case["body"])
            assert answer.status_code == 200, case["comment"]
            assert answer.json()["valid"] is case["valid"], case["comment"]


def plant_master_keys(settings: Settings, keys: dict[int, bytes]) -> None:
    """Put these master keys in place of those that an authority made."""
    database = open_database(settings.resolved_database_url)
    try:
        keks = open_stored_secrets(database, settings).keks
        with database.write() as transaction:
            kek = keks.lock_newest(transaction)
            for table_id, key in keys.items():
                transaction.execute(
                    update(key_tables)
                    .where(key_tables.c.table_id == table_id)
                    .values(master_key=kek.wrap(key, b"key table %d" % table_id))
                )
    finally:
        database.close()


def test_published_sizes_are_not_mixed_with_others(tmp_path: Path) -> None:
    for other in (("--prototype",), ("--tables", "9"), ("--keys-per-table", "9")):
        refused = sma("init", "--published", *other, environ=server_environ(tmp_path / "data"))
        assert refused.returncode != 0
        assert "--published fixes the sizes" in refused.stderr
    assert not (tmp_path / "data").exists()


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
