"""Open the table keys that the authority sealed to this camera: compact JWE (RFC 7516).

PURE. One way of sealing is enough for a camera, which makes its own key: ECDH-ES+A256KW on P-256
(RFC 7518, section 4.6) with A256GCM (section 5.3). Anything else is refused.
"""

import base64
import binascii
import json
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from birthmark_sma.errors import ProtocolError

_ALGORITHM = "ECDH-ES+A256KW"
_ENCRYPTION = "A256GCM"
_KEY_BYTES = 32


def open_table_keys(jwe: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """Return the JSON object inside. Raises ProtocolError, and never says which part was wrong."""
    try:
        head, encrypted_key, nonce, ciphertext, tag = jwe.encode("ascii").split(b".")
        header = json.loads(_decode(head))
        if header["alg"] != _ALGORITHM or header["enc"] != _ENCRYPTION or "crit" in header:
            raise ValueError
        shared = key.exchange(ec.ECDH(), _ephemeral(header["epk"]))
        wrapping = ConcatKDFHash(SHA256(), _KEY_BYTES, _other_info(header)).derive(shared)
        content_key = aes_key_unwrap(wrapping, _decode(encrypted_key))
        # The additional data is the header as it travelled: RFC 7516, section 5.2, step 15.
        opened = json.loads(
            AESGCM(content_key).decrypt(_decode(nonce), _decode(ciphertext) + _decode(tag), head)
        )
        if not isinstance(opened, dict):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError, InvalidTag, InvalidUnwrap):
        raise ProtocolError("The table keys do not open under this camera's key.") from None
    return opened


def _ephemeral(epk: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    """Return the sender's key; one that is not on the curve is a ValueError. RFC 7518, 6.2.1."""
    if epk["kty"] != "EC" or epk["crv"] != "P-256":
        raise ValueError
    x, y = (int.from_bytes(_decode_text(epk[each]), "big") for each in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()


def _other_info(header: dict[str, Any]) -> bytes:
    """Return what the key agreement is bound to. RFC 7518, section 4.6.2."""
    parties = (_decode_text(header.get(each, "")) for each in ("apu", "apv"))
    lengths_first = (_ALGORITHM.encode("ascii"), *parties)
    bits = (8 * _KEY_BYTES).to_bytes(4, "big")
    return b"".join(len(each).to_bytes(4, "big") + each for each in lengths_first) + bits


def _decode_text(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    return _decode(value.encode("ascii"))


def _decode(part: bytes) -> bytes:
    """Decode base64url without padding. RFC 7515, appendix C."""
    try:
        return base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("no base64url") from None
