"""Encrypt stored responses, and name the place of each. Responses are kept for 24 hours.

Provisioning and `idempotency.requests` use it, and so do the rotation and the check of secrets.
"""

import hashlib
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.idempotency.store import StoredResponse
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys

IDEMPOTENCY_PERIOD = timedelta(hours=24)


def storage_key(key_id: str | None, idempotency_key: str) -> bytes:
    """Return the key of a stored response: 32 bytes.

    Each access key has its own Idempotency-Keys, so that no caller gets another's response. The id
    is None where access is open.
    """
    # The NUL byte separates both parts, so that no two pairs give the same text.
    return digest(idempotency_key if key_id is None else f"{key_id}\0{idempotency_key}")


def decrypt(answer: StoredResponse, keks: KeyEncryptionKeys, connection: Connection) -> bytes:
    """Decrypt a stored response. Raises WrongSecretError and KeyEncryptionKeyChangedError."""
    return keks.unwrap(connection, answer.sealed_response, answer.kek_id, answer.idempotency_key)


def rewrap(
    answer: StoredResponse, keks: KeyEncryptionKeys, connection: Connection
) -> StoredResponse:
    """Return the same stored response, encrypted under the newest key-encryption key."""
    sealed = keks.newest.wrap(decrypt(answer, keks, connection), answer.idempotency_key)
    return replace(answer, sealed_response=sealed, kek_id=keks.newest.kek_id)


def digest(text: str) -> bytes:
    """Return the SHA-256 of a text: 32 bytes."""
    return hashlib.sha256(text.encode()).digest()
