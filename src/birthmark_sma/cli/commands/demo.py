"""`sma demo`: play camera, picture and verdicts against a real server, and print each step.

There are four parties: the authority in a process of its own, a camera, and two aggregation
servers, which the authority distinguishes by their addresses. Every response is compared with the
expected one. The server's data are temporary: the demo never touches an authority in use.
"""

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.output import print_line
from birthmark_sma.cli.server_process import running_server

if TYPE_CHECKING:
    import httpx2
    from cryptography import x509

    from birthmark_sma.protocol.camera_token import CameraToken

_SAMPLE_PICTURE = Path(__file__).with_name("demo_picture.jpg")
# All of 127.0.0.0/8 is loopback (RFC 1122, section 3.2.1.3). Callers without a key are told apart
# by their address.
_SECOND_AGGREGATOR = "127.0.0.2"
_REQUEST_SECONDS = 30


def demo(
    picture: Annotated[
        Path | None,
        Argument(
            help="A picture file. Default: a small one of this program.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
) -> None:
    """Show the protocol: a camera, its picture, and the verdicts.

    The demo starts a real server with temporary data, and simulates a camera, two aggregation
    servers and some attacks. The exit code is 1 if a response is not the expected one.
    """
    with _running_authority() as facts:
        story = _Story(facts["url"])
        _print_story(story, facts, picture or _SAMPLE_PICTURE)
    if story.surprises:
        wrong = f"\n{story.surprises} responses were not the expected ones."
        print_line(typer.style(wrong, fg="red"))
        raise typer.Exit(exit_codes.FAILED)
    print_line(typer.style("\nEvery response was the expected one.", fg="green", bold=True))
    print_line(
        "Next: `sma serve` runs an authority for development. Its /docs page is interactive."
    )


@dataclass(slots=True)
class _Story:
    """The authority's URL, and the number of responses that were not the expected ones."""

    url: str
    surprises: int = 0

    def check(self, what: str, got: object, expected: object) -> None:
        """Print a response, and whether it is the expected one. Count it if it is not."""
        right = got == expected
        self.surprises += not right
        mark = typer.style("✓", fg="green") if right else typer.style("✗", fg="red", bold=True)
        verdict = typer.style(str(got), bold=True)
        print_line(
            f"  {mark} {what.ljust(58)} {verdict}" + ("" if right else f"  expected {expected}")
        )


@dataclass(frozen=True, slots=True)
class _Camera:
    """The data that a camera keeps after provisioning."""

    serial: str
    nuc_hash: bytes = field(repr=False)
    table_keys: dict[int, bytes] = field(repr=False)
    certificate: "x509.Certificate"
    issuer: "x509.Certificate"

    def seal(self, table_id: int, key_index: int) -> "CameraToken":
        """Seal the NUC hash into a camera token, under a key of one of the tables."""
        from birthmark_sma.protocol import camera_token, key_derivation

        key = key_derivation.derive_key(self.table_keys[table_id], key_index)
        nonce = secrets.token_bytes(camera_token.NONCE_BYTES)
        return camera_token.seal(
            self.nuc_hash, key=key, table_id=table_id, key_index=key_index, nonce=nonce
        )


def _print_story(story: _Story, facts: dict[str, Any], picture: Path) -> None:
    _step(
        "1. A manufacturer runs its authority",
        f"  It listens on {story.url}. It has created a root and an intermediate CA,",
        f"  and {facts['tables']:,} key tables of {facts['keys_per_table']:,} keys. Aggregation"
        " servers pin the root certificate.",
    )
    camera = _provision(story.url, "demo-camera-0001")
    _step(
        "2. A camera is provisioned, once, in the factory",
        f"  {camera.serial} created a key pair. It got a certificate for it,",
        f"  the keys of tables {', '.join(map(str, camera.table_keys))}, and the NUC hash of its"
        " sensor, which is its secret.",
    )
    image_hash = hashlib.sha256(picture.read_bytes()).hexdigest()
    token = camera.seal(secrets.choice(list(camera.table_keys)), secrets.randbelow(1_000))
    _step(
        "3. The camera takes a picture",
        f"  {picture.name}: SHA-256 {image_hash[:32]}...",
        f"  It seals its NUC hash into a camera token, under key {token.key_index} of table"
        f" {token.table_id}.",
    )
    with _client(story.url) as first, _client(story.url, _SECOND_AGGREGATOR) as second:
        _step("4. An aggregation server gets the picture's hash, the certificate and the token")
        named = _verify(camera, first)
        story.check("the certificate chains to the pinned root. It names", named, camera.serial)
        verdict = _validate(first, token)
        story.check("the authority, which never sees the hash, returns", verdict, "PASS")
        _step("5. Attackers try, and get no reason for the failure")
        for what, forged, expected in _forgeries(story.url, camera, token):
            story.check(what, _validate(first, forged), expected)
        again = _validate(second, token)
        story.check("the first token again, from a second aggregation server", again, "PASS")
        print_line("    A device sends each picture to two aggregation servers: this is no attack.")
        _step("6. The operator sees the reasons")
        stats = first.get("/stats").json()
    counted = stats["recent_validations_24h"]
    verdicts = f"{counted['PASS']} PASS, {counted['FAIL']} FAIL"
    story.check("verdicts in the audit log", verdicts, "2 PASS, 4 FAIL")
    for reason, count in sorted(stats["fail_reasons_24h"].items()):
        print_line(f"      {count} x {reason.replace('_', ' ')}")


def _forgeries(
    url: str, camera: _Camera, token: "CameraToken"
) -> "Iterator[tuple[str, CameraToken, str]]":
    """Yield the attacks: what they are, the camera token, and the expected response."""
    sealed = token.encrypted_nuc_hash
    # The tag is the last 16 bytes of the 48.
    flipped = replace(token, encrypted_nuc_hash=sealed[:-1] + bytes([sealed[-1] ^ 1]))
    yield "a token with one changed bit in its tag", flipped, "FAIL"
    other = _provision_other(url, camera)
    foreign = next(table for table in other.table_keys if table not in camera.table_keys)
    stolen = replace(camera, table_keys=other.table_keys).seal(foreign, 7)
    yield "this camera's NUC hash under a table of another camera", stolen, "FAIL"
    # Sealed with the camera's real keys, so the token opens, but no device has this NUC hash.
    stranger = replace(camera, nuc_hash=secrets.token_bytes(32)).seal(token.table_id, 7)
    yield "a NUC hash that no registered camera has", stranger, "FAIL"
    nowhere = replace(token, table_id=1_000_000)
    yield "a table that does not exist (an error and FAIL)", nowhere, "400 FAIL: Unknown table ID"


# --- the parties


def _provision(url: str, serial: str) -> _Camera:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from birthmark_sma.pki.names import requested_subject

    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(requested_subject(serial))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    with _client(url) as client:
        response = client.post(
            "/api/v1/devices/provision",
            json={"csr": pem, "device_serial": serial, "device_family": "Demo"},
        )
    given = response.raise_for_status().json()
    certificate, issuer = (
        x509.load_pem_x509_certificate(each.encode())
        for each in (given["device_certificate"], given["certificate_chain"][0])
    )
    return _Camera(
        serial,
        bytes.fromhex(given["simulated_nuc_hash"]),
        {int(table): bytes.fromhex(key) for table, key in given["table_keys"].items()},
        certificate,
        issuer,
    )


def _provision_other(url: str, camera: _Camera) -> _Camera:
    """Provision cameras until one has a key table that the first camera does not have.

    Tables are assigned at random, so the first attempt nearly always succeeds.
    """
    for number in range(2, 100):
        other = _provision(url, f"demo-camera-{number:04}")
        if set(other.table_keys) - set(camera.table_keys):
            return other
    raise AssertionError("a hundred cameras with the same three tables")


def _verify(camera: _Camera, client: "httpx2.Client") -> str:
    """Verify the camera's certificate up to the root, as an aggregation server does first.

    Return the serial in the certificate, or the reason for which the path is refused.
    """
    from datetime import UTC, datetime

    from cryptography import x509

    from birthmark_sma.errors import PathRefusedError
    from birthmark_sma.pki.path_validation import verify_path

    root = x509.load_der_x509_certificate(client.get("/pki/root.crt").content)
    try:
        return verify_path(camera.certificate, [camera.issuer], root=root, now=datetime.now(UTC))
    except PathRefusedError as error:
        return str(error)


def _validate(client: "httpx2.Client", token: "CameraToken") -> str:
    from birthmark_sma.protocol.camera_token import to_wire

    response = client.post("/api/v1/validate/nuc", json=to_wire(token))
    answer = response.json()
    if response.status_code == 200:
        return str(answer["validation_result"])
    return f"{response.status_code} {answer.get('validation_result')}: {answer.get('error')}"


def _client(url: str, address: str = "127.0.0.1") -> "httpx2.Client":
    import httpx2

    return httpx2.Client(
        base_url=url,
        timeout=_REQUEST_SECONDS,
        trust_env=False,  # a proxy from the environment cannot reach a loopback address
        transport=httpx2.HTTPTransport(local_address=address),
    )


@contextmanager
def _running_authority() -> Iterator[dict[str, Any]]:
    """Start this program's server on a free port in a temporary directory, and yield its facts."""
    with tempfile.TemporaryDirectory(prefix="sma-demo-") as directory:
        settings = {
            "PORT": "0",
            "SMA_DATA_DIR": f"{directory}/data",
            "SMA_CA_KEY_TYPE": "ec-p256",  # RSA-4096 keys take seconds to make
        }
        with running_server(Path(directory), settings) as facts:
            yield facts


def _step(title: str, *lines: str) -> None:
    print_line(f"\n{typer.style(title, bold=True)}")
    for line in lines:
        print_line(line)
