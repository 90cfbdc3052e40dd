"""The quick starts of docs/integrate/examples.md, each run as it stands against a real sandbox."""

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys
from birthmark_sma.client import AuthorityClient, Pass, verify_bundle
from birthmark_sma.pki.keys.key_policy import check_key_encryption_key, load_public_key
from birthmark_sma.protocol.bundle import SIGNING_PREFIX, Bundle, UnsignedBundle, parse_bundle
from birthmark_sma.protocol.bundle_signature import sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.bundles import der_of
from tests.support.cameras.camera import PROVISION, Camera, csr_pem, new_key, wire
from tests.support.http.faulty_server import FaultyServer, Visit
from tests.support.programs.running import Running, new_serial, wait_until

EXAMPLES = Path(__file__).parents[3] / "examples"
AGGREGATORS = {
    "python": [sys.executable, str(EXAMPLES / "aggregator.py")],
    "node": ["node", str(EXAMPLES / "aggregator.mjs")],
}
SECONDS = 120


@dataclass(frozen=True)
class Device:
    """A camera that signs bundles."""

    camera: Camera
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def of(cls, running: Running, serial: str, curve: ec.EllipticCurve | None = None) -> "Device":
        key = new_key() if curve is None else ec.generate_private_key(curve)
        body = {"csr": csr_pem(key), "device_serial": serial, "device_family": "Test"}
        with running.client() as client:
            response = client.post(PROVISION, json=body)
        assert response.status_code == 200, response.text
        return cls(Camera.of(serial, response.json()), key)

    def capture(self, picture: bytes, token: CameraToken | None = None) -> Bundle:
        """A bundle for a picture."""
        response = self.camera.response
        content = UnsignedBundle(
            image_hash=sha256(picture).digest(),
            camera_token=token or self.camera.token(),
            device_certificate_chain=der_of(
                response["device_certificate"], response["certificate_chain"][0]
            ),
            captured_at=datetime.now(UTC),
        )
        return sign_bundle(content, self.key)

    def signed(self, content: dict[str, Any]) -> bytes:
        """A bundle of anything, soundly signed: it can only be refused for what it says."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        signature = self.key.sign(SIGNING_PREFIX + text, ec.ECDSA(SHA256()))
        return json.dumps(content | {"signature": b64encode(signature).decode()}).encode()


def root_of(running: Running) -> x509.Certificate:
    with running.client() as client:
        return x509.load_der_x509_certificate(client.get("/pki/root.crt").content)


def judged(
    running: Running, tmp_path: Path, language: str, lines: list[bytes]
) -> list[tuple[str, str, str]]:
    """What an example says of each bundle: image hash, verdict, device or reason."""
    root_file = tmp_path / "root.crt"
    root_file.write_bytes(root_of(running).public_bytes(Encoding.PEM))
    ran = subprocess.run(
        [*AGGREGATORS[language], running.server.url, str(root_file)],
        input=b"\n".join(lines) + b"\n",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    told = [line.split("\t") for line in ran.stdout.decode().splitlines()]
    return [(image_hash, verdict, about) for image_hash, verdict, about in told]


@pytest.fixture(params=AGGREGATORS)
def language(request: pytest.FixtureRequest) -> str:
    """Each language in turn. Node is what the tests of this project need."""
    name: str = request.param
    assert shutil.which(AGGREGATORS[name][0]), f"{name} is not installed"
    return name


def scripted(table_id: int, number: int = 0) -> CameraToken:
    return CameraToken(os.urandom(48), table_id, number, os.urandom(12))


def test_verdicts_of_the_aggregators(sandbox: Running, tmp_path: Path, language: str) -> None:
    """Threat 19: a verdict comes of a verdict; what is scripted to go wrong is kept."""
    device = Device.of(sandbox, new_serial())
    p384 = Device.of(sandbox, new_serial(), ec.SECP384R1())
    other = Device.of(sandbox, new_serial())
    verdicts: dict[bytes, tuple[CameraToken | None, str]] = {
        b"genuine": (None, "PASS"),
        b"stranger": (device.camera.token(nuc_hash=bytes(32)), "FAIL"),
        b"another's": (other.camera.token(), "FAIL"),
        b"revoked": (scripted(9_005), "FAIL"),
        b"unknown table": (scripted(9_006), "FAIL"),
    }
    faults: dict[bytes, tuple[CameraToken | None, str]] = {
        b"internal error": (scripted(9_500), "KEPT"),
        b"cut": (scripted(9_901), "KEPT"),
        b"login page": (scripted(9_904), "KEPT"),
        b"redirected": (scripted(9_905), "KEPT"),
        b"away": (scripted(9_503, 60), "KEPT"),
        b"limited": (scripted(9_429, 60), "KEPT"),
    }
    # Apart: what is asked at the same time goes out in one request, and shares its fate.
    for cases in (verdicts, faults):
        lines = [device.capture(picture, token).to_json() for picture, (token, _) in cases.items()]
        expected = [(sha256(each).hexdigest(), verdict) for each, (_, verdict) in cases.items()]
        if cases is verdicts:
            lines.append(p384.capture(b"P-384").to_json())
            expected.append((sha256(b"P-384").hexdigest(), "PASS"))
        told = judged(sandbox, tmp_path, language, lines)
        assert [(image_hash, verdict) for image_hash, verdict, _ in told] == expected


def test_what_the_aggregators_reject(sandbox: Running, tmp_path: Path, language: str) -> None:
    """Tampering, certificates of other times, chains of others, and what is no bundle."""
    device = Device.of(sandbox, new_serial())
    other = Device.of(sandbox, new_serial())
    expired = Device.of(sandbox, f"SANDBOX-EXPIRED-{new_serial()}")
    early = Device.of(sandbox, f"SANDBOX-NOT-YET-VALID-{new_serial()}")
    good = device.capture(b"genuine").to_json()
    content: dict[str, Any] = json.loads(good)
    signature = content.pop("signature")
    first, second = content["device_certificate_chain"]
    [others] = map(b64encode, der_of(other.camera.response["device_certificate"]))
    swapped = good.replace(
        sha256(b"genuine").hexdigest().encode(), sha256(b"swapped").hexdigest().encode()
    )

    def chain(*certificates: str) -> dict[str, Any]:
        return content | {"device_certificate_chain": [*certificates]}

    # All but the first are signed: each has one thing wrong, and that is the reason it is told.
    bad = [
        (swapped, "signature"),
        (expired.capture(b"late").to_json(), "not valid"),
        (early.capture(b"early").to_json(), "not valid"),
        (b"{", "JSON"),
        (good.replace(b'"version":1', b'"version":1,"version":1'), "JSON"),
        (b"null", "fields"),
        (b'{"version": 1}', "fields"),
        (device.signed(content | {"more": 1}), "fields"),
        (device.signed(content | {"version": 2}), "version"),
        (device.signed(content | {"image_hash": "00"}), "image_hash"),
        (json.dumps(content | {"signature": signature[:-4]}).encode(), "signature"),
        (device.signed(chain(second, first)), "certificate"),
        (device.signed(chain(first, first)), "certificate"),
        (device.signed(content | {"captured_at": "2020-01-01T00:00:00.000000Z"}), "not valid"),
        (device.signed(chain(others.decode(), second)), "signature"),
    ]
    lines = [*(text for text, _ in bad), device.signed(content), good]
    told = judged(sandbox, tmp_path, language, lines)
    image_hash = sha256(b"genuine").hexdigest()
    assert [each[:2] for each in told[len(bad) :]] == [(image_hash, "PASS")] * 2
    for (_, reason), (said_hash, verdict, said) in zip(bad, told, strict=False):
        assert (said_hash, verdict) == ("?" * 64, "REJECTED")
        assert reason in said


def test_the_shell_script(sandbox: Running, tmp_path: Path) -> None:
    """examples/camera.sh does each of its steps, and says what came of it."""
    token_file = tmp_path / "token.json"
    device = Device.of(sandbox, new_serial())
    token_file.write_text(json.dumps(wire(device.camera.token())))
    ran = subprocess.run(
        ["sh", str(EXAMPLES / "camera.sh"), sandbox.server.url, str(token_file)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    said = ran.stdout.splitlines()
    assert said[0] == "health: 200 healthy"
    assert said[1].startswith("provision: 200 PROV-")
    assert said[2:5] == ["the same again: 200", "the answers are the same", "device.pem: OK"]
    assert said[5].rstrip() == "table 9000: 200 PASS"
    assert said[6].rstrip() == "table 9001: 200 FAIL"
    assert said[7].startswith("table 9006: 400 FAIL Unknown table ID")
    assert said[8] == "table 9503: 503  The database does not answer."
    assert said[9] == "your token: 200 PASS"
    row = sandbox.rows(
        "SELECT device_family FROM registered_devices WHERE device_family = ?", "Shell"
    )
    assert row == [("Shell",)]


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Java of examples/android, compiled; warnings are errors."""
    place = tmp_path_factory.mktemp("classes")
    sources = sorted((EXAMPLES / "android").rglob("*.java"))
    compiled = subprocess.run(
        ["javac", "-Xlint:all", "-Werror", "-d", str(place), *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    return place


def captured(url: str, classes: Path, serial: str, picture: Path) -> Any:
    """What the camera on a desk says."""
    return subprocess.run(
        [
            *("java", "-cp", str(classes), "org.birthmark.camera.DesktopCamera"),
            *(url, serial, str(picture)),
        ],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("script", ["", "SANDBOX-RECOVERS-", "SANDBOX-LOST-", "SANDBOX-RESET-"])
def test_the_core_of_the_android_app(
    sandbox: Running, classes: Path, tmp_path: Path, script: str
) -> None:
    """Threat 8: it opens its JWE, its bundles pass, and a lost answer does not brick it."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"a picture")
    serial = f"{script}{new_serial()}"
    ran = captured(sandbox.server.url, classes, serial, picture)
    if script == "SANDBOX-RESET-":
        assert ran.returncode == 1
        assert b"SocketException" in ran.stderr
        return
    assert ran.returncode == 0, ran.stderr.decode()
    if script == "SANDBOX-RECOVERS-":
        assert b"again: 503" in ran.stderr
    bundle = verify_bundle(ran.stdout.strip(), root=root_of(sandbox), now=datetime.now(UTC))
    assert bundle.device_serial == serial
    assert bundle.image_hash == sha256(b"a picture").digest()
    with AuthorityClient(sandbox.server.url) as client:
        outcome = client.validate_bundle(bundle)
    assert isinstance(outcome, Pass)
    assert outcome.device_serial == serial


def test_the_android_core_takes_no_certificate_of_another_key(
    sandbox: Running, classes: Path, tmp_path: Path
) -> None:
    """It would sign bundles that nobody takes. It waits as it is told to, if not for hours."""
    theirs = Device.of(sandbox, new_serial()).camera.response
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    asks = [format_datetime(soon, usegmt=True), "1"]  # by itself it would wait less
    visited: list[float] = []

    def answer(visit: Visit) -> None:
        visited.append(time.time())
        if asks:
            visit.answer({}, 503, Retry_After=asks.pop(0))
        else:
            visit.answer(theirs)

    with FaultyServer(answer) as authority:
        ran = captured(authority.url, classes, new_serial(), tmp_path / "none")
    _, second, third = visited
    assert second >= soon.timestamp()
    assert third - second >= 1
    assert (ran.returncode, ran.stderr.count(b"again: ")) == (1, 2)
    assert b"the certificate is for another key" in ran.stderr

    with FaultyServer(lambda visit: visit.answer({}, 503, Retry_After="3600")) as authority:
        ran = captured(authority.url, classes, new_serial(), tmp_path / "none")
        assert (ran.returncode, len(authority.visits)) == (1, 1)


@pytest.mark.parametrize("change", ["serial", "certificate", "in the clear"])
def test_the_android_core_takes_no_secrets_of_another(
    sandbox: Running, classes: Path, tmp_path: Path, change: str
) -> None:
    """Threat 41: a relay that seals what it likes to the camera's recipient key."""

    def relay(visit: Visit) -> None:
        asked = json.loads(visit.request.partition(b"\r\n\r\n")[2])
        with sandbox.client() as client:
            answer = client.post(PROVISION, json=asked).json()
        certificate = x509.load_pem_x509_certificate(answer["device_certificate"].encode())
        true = certificate.fingerprint(SHA256()).hex()
        secret = {
            "device_serial": "another" if change == "serial" else asked["device_serial"],
            "certificate_sha256": "00" * 32 if change == "certificate" else true,
            "nuc_hash": "11" * 32,
            "table_keys": {str(table): "22" * 32 for table in answer["table_assignments"]},
        }
        recipient = load_public_key(asked["key_encryption_public_key"])
        answer["sealed_secrets"] = seal_table_keys(secret, check_key_encryption_key(recipient))
        if change == "in the clear":
            del answer["sealed_secrets"]
            answer |= {"simulated_nuc_hash": "11" * 32, "table_keys": secret["table_keys"]}
        visit.answer(answer)

    with FaultyServer(relay) as authority:
        ran = captured(authority.url, classes, new_serial(), tmp_path / "none")
    assert ran.returncode == 1
    told = {"in the clear": b"there is no sealed_secrets"}
    assert told.get(change, b"the secrets are for another certificate") in ran.stderr


def test_the_android_core_refuses_with_the_reason(
    sandbox: Running, classes: Path, tmp_path: Path
) -> None:
    ran = captured(sandbox.server.url, classes, "SANDBOX-CONFLICT", tmp_path / "none")
    assert ran.returncode == 1
    assert b"device-already-provisioned" in ran.stderr


def taken(visit: Visit) -> None:
    """Answer as an aggregation server that has the bundle."""
    bundle = parse_bundle(visit.request.partition(b"\r\n\r\n")[2])
    visit.answer({"bundle_id": bundle.bundle_id})


def test_the_raspberry_pi_service(sandbox: Running, tmp_path: Path) -> None:
    """Threat 8: its first answer is lost, and its bundle arrives all the same, and passes."""
    serial = f"SANDBOX-LOST-{new_serial()}"
    pictures, key_file = tmp_path / "pictures", tmp_path / "key"
    pictures.mkdir()
    (pictures / "one.jpg").write_bytes(b"a picture")
    key_file.touch(0o600)
    key_file.write_text("ab" * 32)
    with FaultyServer(taken) as aggregator:
        service = subprocess.Popen(
            [
                *(sys.executable, str(EXAMPLES / "raspberry_pi_camera.py")),
                *("--authority", sandbox.server.url, "--aggregator", aggregator.url),
                *("--pictures", str(pictures), "--directory", str(tmp_path / "state")),
                *("--key-file", str(key_file), "--serial", serial),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: bool(aggregator.visits), 60)
            service.terminate()
            assert service.wait(20) == 0
        finally:
            service.kill()
            service.wait(20)
        sent = aggregator.visits[0].request.partition(b"\r\n\r\n")[2]
    bundle = verify_bundle(sent, root=root_of(sandbox), now=datetime.now(UTC))
    assert bundle.device_serial == serial
    with AuthorityClient(sandbox.server.url) as client:
        assert isinstance(client.validate_bundle(bundle), Pass)


def test_what_the_guide_says_of_kotlin() -> None:
    """The guide names every file of the app, and says which no test runs."""
    guide = (EXAMPLES.parent / "docs/integrate/camera-android.md").read_text(encoding="utf-8")
    for path in sorted((EXAMPLES / "android").rglob("*.*")):
        assert path.name in guide
    assert "It is *not* run on Android" in guide
