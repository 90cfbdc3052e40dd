"""A camera that works like the Birthmark project's published Raspberry Pi client.

It shares no code with this project's protocol/. HKDF is implemented here (RFC 5869), so that an
error cannot hide by being in both implementations.
"""

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FIELDS = {
    "device_serial": str,
    "device_certificate": str,
    "certificate_chain": str,
    "device_private_key": str,
    "device_public_key": str,
    "table_assignments": list,
    "nuc_hash": str,
    "device_family": str,
    "master_keys": dict,
}
"""The members of `provisioning_data.json` that the published client reads, with their types."""


@dataclass(frozen=True)
class PublishedCamera:
    """The data that such a client keeps from the file."""

    serial: str
    nuc_hash: bytes = field(repr=False)
    master_keys: dict[int, bytes] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "PublishedCamera":
        """Read `provisioning_data.json`, and check its members and their types."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in FIELDS.items():
            assert isinstance(data[name], kind), name
        keys = {int(table): bytes.fromhex(key) for table, key in data["master_keys"].items()}
        assert sorted(keys) == data["table_assignments"]
        return cls(data["device_serial"], bytes.fromhex(data["nuc_hash"]), keys)

    def body(self, index: int | None = None, **changes: Any) -> dict[str, Any]:
        """Return the request that a published submission server sends for a new token.

        The key index is random, of 1,000, unless given. `changes` replace fields after sealing.
        """
        table = secrets.choice(sorted(self.master_keys))
        index = secrets.randbelow(1_000) if index is None else index
        nonce, sealed = self._seal(table, index)
        token = {
            "ciphertext": sealed[:32].hex(),
            "auth_tag": sealed[32:].hex(),
            "nonce": nonce.hex(),
            "table_id": table,
            "key_index": index,
        }
        return {"camera_token": token | changes, "manufacturer_authority_id": "TEST_MFG_001"}

    def legacy_body(self, table: int | None = None) -> tuple[dict[str, Any], int]:
        """Return the request for a token in the Raspberry Pi client's format, and its key index.

        The request has a key index for each table. Only that of the token's table is right.
        """
        tables = sorted(self.master_keys)
        table = secrets.choice(tables) if table is None else table
        indices = [secrets.randbelow(1_000) for _ in tables]
        index = indices[tables.index(table)]
        nonce, sealed = self._seal(table, index)
        text = base64.b64encode(sealed[:32] + nonce + sealed[32:])
        body = {"ciphertext": text.hex(), "table_references": tables, "key_indices": indices}
        return body, index

    def _seal(self, table: int, index: int) -> tuple[bytes, bytes]:
        nonce = secrets.token_bytes(12)
        key = published_key(self.master_keys[table], index)
        return nonce, AESGCM(key).encrypt(nonce, self.nuc_hash, None)


def published_key(master_key: bytes, key_index: int) -> bytes:
    """Return a key: HKDF-SHA256, empty salt, info = 4-byte index + `Birthmark` (RFC 5869, 2)."""
    pseudorandom_key = hmac.digest(bytes(32), master_key, hashlib.sha256)
    info = key_index.to_bytes(4, "big") + b"Birthmark"
    return hmac.digest(pseudorandom_key, info + b"\x01", hashlib.sha256)
