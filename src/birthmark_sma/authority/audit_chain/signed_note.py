"""Signed notes with Ed25519, as C2SP specifies them (https://c2sp.org/signed-note). PURE.

A note is a text, an empty line, and a line with the name of the key and its signature. Checkpoints
are such notes, so other tools can verify them.
"""

import base64
import binascii
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_NAME = "birthmark-sma-audit"
THE_KEY = 1
"""The number of the one key of checkpoints in the database."""
_ED25519 = b"\x01"
_DASH = "\u2014"
_KEY_BYTES = 32
_ID_BYTES = 4


def sign(text: str, key: Ed25519PrivateKey) -> str:
    """Return the signed note of a text, which must end with a line break."""
    signature = _key_id(KEY_NAME, key.public_key().public_bytes_raw()) + key.sign(text.encode())
    return f"{text}\n{_DASH} {KEY_NAME} {base64.b64encode(signature).decode()}\n"


def open_note(note: str, verifier: str) -> str:
    """Return the text of a note. `verifier` is a key as `format_verifier` writes it.

    Signatures of other keys are ignored. Raises ValueError unless this key has signed the text.
    """
    name, public_key = _parse_verifier(verifier)
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise ValueError("it is not a signed note")
    text += "\n"
    key_id = _key_id(name, public_key)
    for line in signatures.splitlines():
        dash, _, named = line.partition(" ")
        signer, _, encoded = named.partition(" ")
        signature = _decode(encoded)
        if dash == _DASH and signer == name and signature[:_ID_BYTES] == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(public_key).verify(
                    signature[_ID_BYTES:], text.encode()
                )
            except InvalidSignature:
                raise ValueError("its signature is wrong") from None
            return text
    raise ValueError("this key has not signed it")


def format_verifier(public_key: bytes) -> str:
    """Return a public key as text: name, key id and key, as in `name+0123abcd+base64`."""
    encoded = base64.b64encode(_ED25519 + public_key).decode()
    return f"{KEY_NAME}+{_key_id(KEY_NAME, public_key).hex()}+{encoded}"


def _parse_verifier(verifier: str) -> tuple[str, bytes]:
    """Return name and key. Raises ValueError."""
    name, _, rest = verifier.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    typed = _decode(encoded)
    kind, public_key = typed[:1], typed[1:]
    if not name or kind != _ED25519 or len(public_key) != _KEY_BYTES:
        raise ValueError("it is not the public key of an Ed25519 verifier")
    if _key_id(name, public_key).hex() != key_id:
        raise ValueError("the key id is not that of the public key: a part of it was mistyped")
    return name, public_key


def parse_verifier(verifier: str) -> bytes:
    """Return the public key of a text of `format_verifier`. Raises ValueError."""
    return _parse_verifier(verifier)[1]


def _key_id(name: str, public_key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_ID_BYTES]


def _decode(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""
