"""`sma demo`: play camera, picture and verdicts against a real server, and print each step.

There are four parties: the authority in a process of its own, a camera, and two aggregation
servers, which the authority distinguishes by their addresses. Every response is compared with the
expected one. The server's data are temporary: the demo never touches an authority in use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.output import print_line

if TYPE_CHECKING:
    import httpx2
    from cryptography import x509

    from birthmark_sma.protocol.camera_token import CameraToken

_SAMPLE_PICTURE = Path(__file__).with_name("demo_picture.jpg")
# All of 127.0.0.0/8 is loopback (RFC 1122, section 3.2.1.3). Callers without a key are told apart
# by their address.
_SECOND_AGGREGATOR = "127.0.0.2"
_START_SECONDS = 60
_REQUEST_SECONDS = 30


def demo(
    picture: Annotated[
        Path | None,
        typer.Argument(
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
        print_line(
            typer.style(f"\n{story.surprises} responses were not the expected ones.", fg="red")
        )
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
    chain: "list[x509.Certificate]"

    def seal(
        self, table_id: int, key_index: int, *, master_key: bytes | None = None
    ) -> "CameraToken":
        """Seal the NUC hash into a camera token.

        `master_key` defaults to the camera's own key of the table `table_id`.
        """
        import secrets

        from birthmark_sma.protocol import camera_token, key_derivation

        key = key_derivation.derive_key(master_key or self.table_keys[table_id], key_index)
        return camera_token.seal(
            self.nuc_hash,
            key=key,
            table_id=table_id,
            key_index=key_index,
            nonce=secrets.token_bytes(camera_token.NONCE_BYTES),
        )


def _print_story(story: _Story, facts: dict[str, Any], picture: Path) -> None:
    _heading("1", "A manufacturer runs its authority")
    print_line(f"  It listens on {story.url}. It has created a root and an intermediate CA,")
    print_line(
        f"  and {facts['tables']:,} key tables of {facts['keys_per_table']:,} keys. Aggregation"
        " servers pin the root certificate."
    )

    _heading("2", "A camera is provisioned, once, in the factory")
    camera = _provision(story.url, "demo-camera-0001")
    print_line(
        f"  {camera.serial} created a key pair and requested a certificate. It got the certificate,"
    )
    print_line(
        f"  the keys of tables {', '.join(map(str, camera.table_keys))}, and the NUC hash of its"
        " sensor, which is its secret."
    )

    _heading("3", "The camera takes a picture")
    image_hash, token = _take_picture(camera, picture)
    print_line(f"  {picture.name}: SHA-256 {image_hash[:32]}...")
    print_line(
        f"  It seals its NUC hash into a camera token, under key {token.key_index} of table"
        f" {token.table_id}."
    )

    _heading("4", "An aggregation server gets the picture's hash, the certificate and the token")
    with _client(story.url) as first, _client(story.url, _SECOND_AGGREGATOR) as second:
        story.check(
            "the certificate chains to the pinned root. It names",
            _verify(camera, first),
            camera.serial,
        )
        story.check(
            "the authority, which never sees the hash, returns", _validate(first, token), "PASS"
        )
        _print_attempts(story, camera, token, first, second)
        _heading("6", "The operator sees the reasons")
        _print_figures(story, first)


def _print_attempts(
    story: _Story,
    camera: _Camera,
    token: "CameraToken",
    first: "httpx2.Client",
    second: "httpx2.Client",
) -> None:
    import secrets

    _heading("5", "Attackers try, and get no reason for the failure")
    tampered = token.encrypted_nuc_hash[:-1] + bytes([token.encrypted_nuc_hash[-1] ^ 1])
    story.check(
        "a token with one changed bit in its tag",
        # The tag is the last 16 bytes of the 48.
        _validate(first, replace(token, encrypted_nuc_hash=tampered)),
        "FAIL",
    )

    other = _provision_other(story.url, camera)
    foreign = next(table for table in other.table_keys if table not in camera.table_keys)
    stolen = camera.seal(foreign, 7, master_key=other.table_keys[foreign])
    story.check(
        "this camera's NUC hash under a table of another camera",
        _validate(first, stolen),
        "FAIL",
    )

    # Sealed with the camera's real keys, so the token opens, but no device has this NUC hash.
    stranger = replace(camera, nuc_hash=secrets.token_bytes(32))
    story.check(
        "a NUC hash that no registered camera has",
        _validate(first, stranger.seal(token.table_id, 7)),
        "FAIL",
    )

    nowhere = replace(token, table_id=1_000_000)
    story.check(
        "a table that does not exist (an error and FAIL)",
        _validate(first, nowhere),
        "400 FAIL: Unknown table ID",
    )
    story.check(
        "the first token again, from a second aggregation server", _validate(second, token), "PASS"
    )
    print_line("    A device sends each picture to two aggregation servers, so this is no attack.")


def _print_figures(story: _Story, client: "httpx2.Client") -> None:
    figures = client.get("/stats").json()
    counted = figures["recent_validations_24h"]
    story.check(
        "verdicts in the audit log",
        f"{counted['PASS']} PASS, {counted['FAIL']} FAIL",
        "2 PASS, 4 FAIL",
    )
    for reason, count in sorted(figures["fail_reasons_24h"].items()):
        print_line(f"      {count} x {reason.replace('_', ' ')}")


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
    response.raise_for_status()
    given = response.json()
    return _Camera(
        serial=serial,
        nuc_hash=bytes.fromhex(given["simulated_nuc_hash"]),
        table_keys={int(table): bytes.fromhex(key) for table, key in given["table_keys"].items()},
        certificate=x509.load_pem_x509_certificate(given["device_certificate"].encode()),
        chain=[
            x509.load_pem_x509_certificate(each.encode()) for each in given["certificate_chain"]
        ],
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


def _take_picture(camera: _Camera, picture: Path) -> "tuple[str, CameraToken]":
    import hashlib
    import secrets

    image_hash = hashlib.sha256(picture.read_bytes()).hexdigest()
    table_id = secrets.choice(list(camera.table_keys))
    return image_hash, camera.seal(table_id, secrets.randbelow(1_000))


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
        return verify_path(camera.certificate, camera.chain[:1], root=root, now=datetime.now(UTC))
    except PathRefusedError as error:
        return str(error)


def _validate(client: "httpx2.Client", token: "CameraToken") -> str:
    response = client.post(
        "/api/v1/validate/nuc",
        json={
            "encrypted_nuc_hash": token.encrypted_nuc_hash.hex(),
            "table_id": token.table_id,
            "key_index": token.key_index,
            "nonce": token.nonce.hex(),
        },
    )
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
    """Start this program's server on a free port in a temporary directory, and yield its facts.

    Raises ConfigurationError if the server does not start. Settings of the environment are removed,
    so that the demo cannot reach a database in use.
    """
    import json
    import os
    import subprocess
    import sys
    import tempfile

    from birthmark_sma.errors import ConfigurationError

    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SMA_") and name not in {"DATABASE_URL", "CA_PASSWORD", "PORT"}
    }
    with tempfile.TemporaryDirectory(prefix="sma-demo-") as directory:
        command = [sys.executable, "-m", "birthmark_sma", "serve", "--port", "0", "--json"]
        process = subprocess.Popen(  # noqa: S603  this very program
            [*command, "--data-dir", f"{directory}/data"],
            cwd=directory,
            env=environ | {"SMA_CA_KEY_TYPE": "ec-p256"},  # RSA-4096 keys take seconds to make
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None  # noqa: S101
            # The server prints one indented JSON object and keeps stdout open, so the line with the
            # closing brace is the end.
            decoder, text = json.JSONDecoder(), ""
            for line in process.stdout:
                text += line
                if line == "}\n":
                    break
            if not text:
                _, error = process.communicate(timeout=_START_SECONDS)
                raise ConfigurationError(f"The server did not start: {error.strip()}")
            yield decoder.decode(text)
        finally:
            process.terminate()
            process.communicate(timeout=_START_SECONDS)


def _heading(number: str, text: str) -> None:
    print_line(f"\n{typer.style(f'{number}. {text}', bold=True)}")
