"""The published Raspberry Pi client and submission server, beside a prototype authority."""

import json
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES
from tests.end_to_end.conftest import Start
from tests.support.commands import sma
from tests.support.published_camera import PublishedCamera

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
