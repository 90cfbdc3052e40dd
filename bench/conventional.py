"""A conventional implementation of token validation, as the baseline of the benchmark.

It uses FastAPI with models and a synchronous driver. Each request opens a connection, looks up and
unwraps the table's key, and commits. It is correct and written as a first version would be. It
reads the same database, returns the same verdicts and writes the same rows. `bench.serving` runs it
in a process of its own.
"""

import os
from datetime import UTC, datetime
from typing import Annotated

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from birthmark_sma.authority.authority import open_authority
from birthmark_sma.config import load_settings

_authority = open_authority(load_settings({}, os.environ))
_kek = _authority.secrets.keks.newest
_index = _authority.secrets.nuc_hash_index
_url = _authority.settings.resolved_database_url

app = FastAPI()


class TokenIn(BaseModel):
    """A camera token."""

    encrypted_nuc_hash: Annotated[str, Field(pattern="^[0-9a-fA-F]{96}$")]
    table_id: int
    key_index: Annotated[int, Field(ge=0, lt=_authority.table_sizes.keys_per_table)]
    nonce: Annotated[str, Field(pattern="^[0-9a-fA-F]{24}$")]


class VerdictOut(BaseModel):
    """A verdict."""

    validation_result: str
    manufacturer_id: str
    device_family: str | None
    device_serial: str | None
    timestamp: datetime


@app.post("/api/v1/validate/nuc")
def validate(token: TokenIn, request: Request) -> VerdictOut:
    """Look up the key, open the token, decide the verdict, add the audit row and commit."""
    now = datetime.now(UTC)
    encrypted = bytes.fromhex(token.encrypted_nuc_hash)
    with psycopg.connect(_url) as connection:
        table = connection.execute(
            "SELECT master_key FROM key_tables WHERE table_id = %s", (token.table_id,)
        ).fetchone()
        if table is None:
            raise HTTPException(400, "Unknown table ID")
        nuc_hash = _open(token, encrypted, table[0])
        device = None
        if nuc_hash is not None:
            device = connection.execute(
                "SELECT device_serial, device_family, status, table_assignments"
                " FROM registered_devices WHERE nuc_hash = %s",
                (_index.of(nuc_hash),),
            ).fetchone()
        serial, family, status, tables = device or (None, None, None, ())
        passed = status == "active" and token.table_id in tables
        result = "PASS" if passed else "FAIL"
        connection.execute(
            "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
            " validation_result, reason, device_serial, validated_at, request_ip)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                encrypted,
                token.table_id,
                token.key_index,
                result,
                "genuine" if passed else "not_opened",
                serial,
                now,
                request.client.host if request.client else None,
            ),
        )
    return VerdictOut(
        validation_result=result,
        manufacturer_id="SimulatedMfg",
        device_family=family if passed else None,
        device_serial=serial if passed else None,
        timestamp=now,
    )


def _open(token: TokenIn, encrypted: bytes, wrapped: bytes) -> bytes | None:
    """Unwrap the table's master key, derive the token's key and open the token.

    Return the NUC hash, or None if the tag is wrong. The derivation is HKDF with SHA-256 (RFC
    5869).
    """
    master_key = _kek.unwrap(wrapped, b"key table %d" % token.table_id)
    hkdf = HKDF(SHA256(), 32, salt=b"Birthmark", info=token.key_index.to_bytes(4, "big"))
    try:
        return AESGCM(hkdf.derive(master_key)).decrypt(bytes.fromhex(token.nonce), encrypted, None)
    except InvalidTag:
        return None
