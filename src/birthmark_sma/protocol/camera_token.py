"""Seal a NUC hash into a camera token, and open it again (AES-256-GCM, SP 800-38D).

A `CameraToken` exists only if it is well-formed; otherwise its constructor raises
MalformedCameraTokenError. `seal` never fails for well-formed input. `open_camera_token` returns the
32-byte NUC hash or raises UnopenedCameraTokenError. That error must never reveal which part was
wrong. `token_digest` names a token in the replay ledger.
"""

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from birthmark_sma.errors import MalformedCameraTokenError, UnopenedCameraTokenError
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER

NUC_HASH_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
ENCRYPTED_NUC_HASH_BYTES = NUC_HASH_BYTES + TAG_BYTES

DIGEST_BYTES = 16
"""The length of a token digest.

Among 10^9 tokens, two share a digest with a probability of 1 in 10^21. To find another token with a
given digest takes 2^128 trials.
"""

# Two unsigned 64-bit integers: table id and key index, big-endian.
_ADDRESS = struct.Struct("!QQ")

# Protocol v1 uses no additional authenticated data.
_NO_AAD = None


@dataclass(frozen=True, slots=True)
class CameraToken:
    """The token of a camera: 48 bytes of ciphertext and tag, the nonce, and the address of the key.

    A well-formed token can name a table that does not exist: only the authority can check that.
    """

    encrypted_nuc_hash: bytes = field(repr=False)
    table_id: int
    key_index: int
    nonce: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.encrypted_nuc_hash) != ENCRYPTED_NUC_HASH_BYTES:
            raise MalformedCameraTokenError(
                f"encrypted_nuc_hash has {ENCRYPTED_NUC_HASH_BYTES} bytes,"
                f" not {len(self.encrypted_nuc_hash)}."
            )
        if len(self.nonce) != NONCE_BYTES:
            raise MalformedCameraTokenError(
                f"nonce has {NONCE_BYTES} bytes, not {len(self.nonce)}."
            )
        if not 0 <= self.table_id <= MAX_WIRE_INTEGER:
            raise MalformedCameraTokenError(f"table_id lies in 0..{MAX_WIRE_INTEGER}.")
        if not 0 <= self.key_index <= MAX_WIRE_INTEGER:
            raise MalformedCameraTokenError(f"key_index lies in 0..{MAX_WIRE_INTEGER}.")


def to_wire(token: CameraToken) -> dict[str, str | int]:
    """Return the fields of a camera token as they are in JSON. Byte strings become hex."""
    return {
        "encrypted_nuc_hash": token.encrypted_nuc_hash.hex(),
        "table_id": token.table_id,
        "key_index": token.key_index,
        "nonce": token.nonce.hex(),
    }


def seal(
    nuc_hash: bytes, *, key: bytes, table_id: int, key_index: int, nonce: bytes
) -> CameraToken:
    """Seal a 32-byte NUC hash under a 32-byte derived key (SP 800-38D, section 7.1).

    The nonce must never repeat under one key: draw 12 bytes from a cryptographic generator.

    Raises MalformedCameraTokenError for a NUC hash or nonce of another length.
    """
    if len(nuc_hash) != NUC_HASH_BYTES:
        raise MalformedCameraTokenError(
            f"A NUC hash has {NUC_HASH_BYTES} bytes, not {len(nuc_hash)}."
        )
    if len(nonce) != NONCE_BYTES:
        raise MalformedCameraTokenError(f"nonce has {NONCE_BYTES} bytes, not {len(nonce)}.")
    return CameraToken(
        encrypted_nuc_hash=AESGCM(key).encrypt(nonce, nuc_hash, _NO_AAD),
        table_id=table_id,
        key_index=key_index,
        nonce=nonce,
    )


def open_camera_token(camera_token: CameraToken, key: bytes) -> bytes:
    """Return the 32-byte NUC hash inside a camera token (SP 800-38D, section 7.2).

    Raises UnopenedCameraTokenError if the tag does not verify under this key.
    """
    try:
        return AESGCM(key).decrypt(camera_token.nonce, camera_token.encrypted_nuc_hash, _NO_AAD)
    except InvalidTag:
        raise UnopenedCameraTokenError("The camera token does not open under this key.") from None


def token_digest(camera_token: CameraToken, derivation: Derivation = NORMATIVE) -> bytes:
    """Return a 16-byte digest of a camera token and of the derivation it was submitted under.

    The digest is BLAKE2b (RFC 7693) over all fields on the wire, personalised by the derivation's
    label. The same token under another derivation is another question to the authority, so it is no
    repeat. Every field has a fixed length, so two different tokens never give the same input. The
    nonce is random, so a digest does not reveal the token.
    """
    address = _ADDRESS.pack(camera_token.table_id, camera_token.key_index)
    text = address + camera_token.nonce + camera_token.encrypted_nuc_hash
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, person=derivation.label).digest()
