"""Decrypt the secrets that the authority sealed to this camera: compact JWE (RFC 7516). PURE.

`provisioning` calls it. A camera makes its own key, so one algorithm is enough: ECDH-ES+A256KW on
P-256 (RFC 7518, section 4.6) with A256GCM (section 5.3). Every other header member, length, or
encoding of base64url and JSON must be refused.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from birthmark_sma.errors import ProtocolError
from birthmark_sma.protocol.strict_json import parse_json

_ALGORITHM = "ECDH-ES+A256KW"
_HEADER = {"alg": _ALGORITHM, "enc": "A256GCM"}
_CONTENT_TYPE = {"cty": "json"}  # optional: other libraries leave it out
_POINT = {"kty": "EC", "crv": "P-256"}
_COORDINATE_BYTES = 32
_KEY_BYTES = 32
_WRAPPED_BYTES = _KEY_BYTES + 8  # RFC 3394
_NONCE_BYTES = 12
_TAG_BYTES = 16


def open_table_keys(jwe: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """Return the JSON object inside a JWE.

    Raises ProtocolError. The error must never reveal which part was wrong.
    """
    try:
        head, encrypted_key, nonce, ciphertext, tag = jwe.split(".")
        shared = key.exchange(ec.ECDH(), _ephemeral(_decode(head)))
        wrapping = ConcatKDFHash(SHA256(), _KEY_BYTES, _other_info()).derive(shared)
        content_key = aes_key_unwrap(wrapping, _decode(encrypted_key, _WRAPPED_BYTES))
        # The additional data is the header as it was received (RFC 7516, section 5.2, step 15).
        opened = parse_json(
            AESGCM(content_key).decrypt(
                _decode(nonce, _NONCE_BYTES),
                _decode(ciphertext) + _decode(tag, _TAG_BYTES),
                head.encode("ascii"),
            )
        )
        if not isinstance(opened, dict):
            raise ValueError
    except (KeyError, TypeError, ValueError, InvalidTag, InvalidUnwrap):
        raise ProtocolError("The secrets cannot be decrypted with this camera's key.") from None
    return opened


def _ephemeral(head: bytes) -> ec.EllipticCurvePublicKey:
    """Return the sender's ephemeral key from a header (RFC 7518, sections 4.6.1 and 6.2.1).

    Raises ValueError for an unknown header member, such as `zip` or `crit`, and for a point that is
    not on the curve. Raises KeyError or TypeError if a member is missing or of another type.
    """
    header = parse_json(head)
    if not isinstance(header, dict) or not isinstance(header.get("epk"), dict):
        raise TypeError
    epk = header.pop("epk")
    if header not in (_HEADER, _HEADER | _CONTENT_TYPE):
        raise ValueError
    x, y = (int.from_bytes(_decode(epk.pop(name), _COORDINATE_BYTES), "big") for name in ("x", "y"))
    if epk != _POINT:
        raise ValueError
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()


def _other_info() -> bytes:
    """Return the OtherInfo of the key agreement, without party names (RFC 7518, section 4.6.2)."""
    algorithm, bits = _ALGORITHM.encode("ascii"), 8 * _KEY_BYTES
    return len(algorithm).to_bytes(4, "big") + algorithm + bytes(8) + bits.to_bytes(4, "big")


def _decode(part: object, size: int | None = None) -> bytes:
    """Decode base64url without padding, in canonical form only (RFC 7515, appendix C)."""
    if not isinstance(part, str):
        raise TypeError
    decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise ValueError
    if size is not None and len(decoded) != size:
        raise ValueError
    return decoded
