"""No secret is in the log, in the database, or in an error: raw, hex, base64 or base64url."""

import base64
import json
import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from birthmark_sma.authority.authority import opened_database
from birthmark_sma.authority.ca.intermediate_key import open_issuers
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.config import load_settings
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    new_key,
    provision_body,
    sealed_fields,
    wire,
)
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial, start
from tests.support.programs.server import PASSPHRASE
from tests.support.secret_search import forms_of, found_in

JSON = {"Content-Type": "application/json"}


def ca_private_key(running: Running) -> dict[str, bytes]:
    """The intermediate's private key, as DER and as its bare number."""
    settings = load_settings({}, running.environ)
    with opened_database(settings) as database:
        opened = open_stored_secrets(database, settings)
        signer = open_issuers(database, settings, opened).active.signer
    number = signer.key.private_numbers().private_value  # type: ignore[union-attr]
    return {"CA key": signer.private_der(), "CA key's number": number.to_bytes(32, "big")}


def everything_stored(running: Running) -> bytes:
    """All that the database holds: the bytes of SQLite's files, or every row of every table."""
    if running.uses_sqlite:
        file = Path(running.database_url.removeprefix("sqlite:///"))
        parts = [each.read_bytes() for each in sorted(file.parent.glob(f"{file.name}*"))]
        assert len(parts) >= 2, "the write-ahead log is part of it while the server runs"
        return b"\0".join(parts)
    tables = running.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) >= 8
    cells = [
        cell
        for (table,) in tables
        for row in running.rows(f'SELECT * FROM "{table}"')
        for cell in row
    ]
    return b"\0".join(
        bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode()
        for cell in cells
    )


def provoke_errors(running: Running, known: Camera, secret_text: str) -> list[bytes]:
    """Send secrets in every wrong place; return all bodies that came back."""
    hexed = known.nuc_hash.hex()
    token = wire(known.token())
    pem = new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    provisions: list[dict[str, object]] = [
        provision_body(known.serial, nuc_hash=hexed),
        provision_body(new_serial(), nuc_hash=hexed),
        provision_body(new_serial(), nuc_hash=hexed + "0"),
        provision_body(hexed + "\n"),
        provision_body(new_serial(), device_family=hexed),
        provision_body(new_serial(), device_public_key=secret_text),
        provision_body(new_serial(), device_public_key=pem.decode()),
        provision_body(new_serial()) | {"table_keys": known.response["table_keys"]},
    ]
    validations: list[dict[str, object]] = [
        token | {"nonce": hexed},
        token | {"table_id": hexed},
        token | {"table_id": 2_500},
        token | {"nuc_hash": hexed},
        token | {"encrypted_nuc_hash": secret_text},
        wire(known.token(nuc_hash=bytes(32))),
    ]
    with running.client() as client:
        responses = [client.post(PROVISION, json=body) for body in provisions]
        responses += [
            client.post(PROVISION, json=body, headers={"Idempotency-Key": secret_text})
            for body in (provision_body("other-body"), provision_body("another-body"))
        ]
        responses += [client.post(VALIDATE, json=body) for body in validations]
        for path in (PROVISION, VALIDATE):
            broken = json.dumps(token)[:-1].encode()
            responses.append(client.post(path, content=broken, headers=JSON))
            responses.append(client.post(path, content=json.dumps(token).encode()))
            responses.append(client.post(path, content=hexed.encode() * 2_000, headers=JSON))
        responses.append(client.get(f"/health?nuc_hash={hexed}"))
        responses.append(client.get("/nowhere"))
    assert {response.status_code for response in responses} >= {200, 400, 404, 409, 413, 415, 422}
    return [response.content for response in responses if response.status_code >= 400]


def test_no_secret_is_written_anywhere(start_server: Start) -> None:
    """Threats 13, 17 and 28. Threat 13: a dump of the database opens no token.

    Threat 28: no log line and no error holds a NUC hash, master key, passphrase, JWE, whole token,
    CA key or Idempotency-Key, whatever goes wrong.
    Threat 17: a stolen audit trail holds no token to replay, as it leaves the nonces out.
    """
    running = start_server()
    server = running.server
    idempotency_key = secrets.token_urlsafe(24)
    own_hash = secrets.token_bytes(32)
    passphrase = (
        (server.data_dir / "ca-password").read_bytes().strip()
        if running.uses_sqlite
        else PASSPHRASE.encode()
    )
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial(), nuc_hash=own_hash.hex())
        other = Camera.provisioned(client, new_serial())
        headers = {"Idempotency-Key": idempotency_key}
        serial, sealed_hash = new_serial(), secrets.token_bytes(32)
        sealed_body = provision_body(serial, **sealed_fields(serial), nuc_hash=sealed_hash.hex())
        sealed = client.post(PROVISION, json=sealed_body, headers=headers).json()
        plain_body = provision_body(new_serial())
        kept = client.post(PROVISION, json=plain_body, headers={"Idempotency-Key": "-"}).json()
        tokens = [camera.token(), other.token(), camera.token(nuc_hash=bytes(range(32)))]
        for token in tokens:
            client.post(VALIDATE, json=wire(token))

    private = {
        "own NUC hash": own_hash,
        "NUC hash": other.nuc_hash,
        "NUC hash of a kept answer": bytes.fromhex(kept["simulated_nuc_hash"]),
        "NUC hash of nobody": bytes(range(32)),
        "passphrase": passphrase,
        "JWE": sealed["sealed_secrets"].encode(),
        "NUC hash in the JWE": sealed_hash,
        "Idempotency-Key": idempotency_key.encode(),
    }
    private |= {f"nonce {n}": token.nonce for n, token in enumerate(tokens)}
    for answer in (camera.response, other.response, kept):
        for table, key in answer["table_keys"].items():
            private[f"master key {table}"] = bytes.fromhex(key)
    private |= ca_private_key(running)
    logged = private | {f"token {n}": t.encrypted_nuc_hash for n, t in enumerate(tokens)}

    bodies = provoke_errors(running, camera, idempotency_key)
    assert found_in(b"\0".join(bodies), logged) == []
    assert found_in(everything_stored(running), private) == []
    assert found_in(server.said().encode(), logged) == []
    assert server.terminate() == 0
    assert server.process.stdout is not None
    assert found_in(server.process.stdout.read().encode(), logged) == []
    assert found_in(server.said().encode(), logged) == []
    assert found_in(everything_on_disk(server.data_dir, running), private) == []


def everything_on_disk(data_dir: Path, running: Running) -> bytes:
    """Every file of the data directory but the one whose purpose is the passphrase."""
    if not running.uses_sqlite:
        return b""
    return b"\0".join(
        file.read_bytes() for file in data_dir.iterdir() if file.name != "ca-password"
    )


def test_no_secret_is_logged_during_an_outage(tmp_path: Path) -> None:
    """Threat 28: what waits in vain and is turned away is not written down either."""
    running = start(tmp_path / "data", "sqlite:", SMA_ANSWER_TIMEOUT="1", SMA_POOL_LIMIT="1")
    with running.server:
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            token = camera.token()
            with running.database() as database, database.write():
                for _ in range(3):
                    assert client.post(VALIDATE, json=wire(token)).status_code == 503
        listed = sma("devices", "show", camera.serial, environ=running.environ)
    assert listed.returncode == 0, listed.stderr
    private = {"NUC hash": camera.nuc_hash, "token": token.encrypted_nuc_hash}
    private |= {f"master key {table}": key for table, key in camera.table_keys.items()}
    said = running.server.said()
    assert "unavailable" in said, "an operator is told of the outage"
    assert found_in(said.encode(), private) == []
    assert found_in(listed.stdout.encode(), private) == []


@pytest.mark.parametrize("shift", range(4))
def test_the_search_would_find_a_secret(shift: int) -> None:
    """The forms are found inside longer base64, wherever they begin."""
    secret = secrets.token_bytes(32)
    around = bytes(shift) + secret + bytes(7)
    for written in (
        around,
        around.hex().encode(),
        around.hex().upper().encode(),
        base64.b64encode(around),
        base64.urlsafe_b64encode(around),
    ):
        assert found_in(written, {"it": secret}) == ["it"]
        assert found_in(written, {"it": secrets.token_bytes(32)}) == []
    assert len(forms_of(secret)) >= 8
