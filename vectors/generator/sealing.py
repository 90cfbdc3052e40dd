"""Seal secrets as compact JWE (RFC 7516), with the same bytes each time.

`provisioning` calls it. The authority uses a JOSE library and random values. Here the ephemeral
key, the nonce, the content key and the seed of OAEP are digests of labels, and each argument can
break one rule of RFC 7518.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from vectors.generator import seeded_keys
from vectors.generator.seeded_keys import secret

Agreeing: TypeAlias = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey
Recipient: TypeAlias = Agreeing | rsa.RSAPrivateKey
Padding: TypeAlias = Callable[[bytes, int], bytes]
"""Pads a content key to the length of a modulus, in bytes."""

RSA_2048 = "RSA 2048"
EPHEMERAL = "test ephemeral key"
_AGREEMENT = "ECDH-ES+A256KW"


def recipient_key(kind: str, label: str) -> Recipient:
    """Return the key of a label."""
    makers: dict[str, Callable[[str], Recipient]] = {
        "P-256": seeded_keys.p256,
        "P-384": seeded_keys.p384,
        "X25519": seeded_keys.x25519_key,
        RSA_2048: seeded_keys.rsa_key,
    }
    return makers[kind](label)


def oaep(
    message: bytes,
    size: int,
    *,
    hashed: str = "sha256",
    mask: str = "sha256",
    label: bytes = b"",
    seed: str = "test OAEP seed",
) -> bytes:
    """Pad as RFC 8017, section 7.1.1, says. RSA-OAEP-256 is what the defaults make."""
    length = hashlib.new(hashed, usedforsecurity=False).digest_size
    hashed_label = hashlib.new(hashed, label, usedforsecurity=False).digest()
    zeros = bytes(size - len(message) - 2 * length - 2)
    block = hashed_label + zeros + b"\1" + message
    masked = _xor(block, _mgf1(secret(seed)[:length], len(block), mask))
    masked_seed = _xor(secret(seed)[:length], _mgf1(masked, length, mask))
    return b"\0" + masked_seed + masked


def pkcs1(message: bytes, size: int) -> bytes:
    """Pad as RFC 8017, section 7.2.1, says: the padding of `RSA1_5`."""
    return b"\0\2" + b"\xff" * (size - len(message) - 3) + b"\0" + message


def seal(
    kind: str,
    recipient: Recipient,
    plaintext: bytes,
    changes: Mapping[str, Any] | None = None,
    *,
    twice: bool = False,
    key_bytes: int = 32,
    nonce: bytes = secret("test JWE nonce")[:12],
    ephemeral: str = EPHEMERAL,
    zeros_kept: bool = True,
    padding: Padding = oaep,
) -> str:
    """Return a compact JWE. `changes` are made to the header; `twice` writes `alg` twice."""
    content_key = secret("test content key")[:key_bytes]
    header: dict[str, Any]
    if isinstance(recipient, rsa.RSAPrivateKey):
        header = {"alg": "RSA-OAEP-256", "enc": "A256GCM", "cty": "json"}
        encrypted_key = _encrypt(recipient, content_key, padding)
    else:
        sender = recipient_key(kind, ephemeral)
        epk = public_jwk(kind, sender)
        header = {"alg": _AGREEMENT, "enc": "A256GCM", "cty": "json", "epk": epk}
        shared = agree(sender, recipient)
        encrypted_key = _wrap(shared if zeros_kept else shared.lstrip(b"\0"), content_key)
    written = json.dumps(header | dict(changes or {}), separators=(",", ":"))
    if twice:
        written = f'{{"alg":"{header["alg"]}",{written[1:]}'
    head = base64url(written.encode())
    sealed = AESGCM(content_key).encrypt(nonce, plaintext, head.encode())
    return ".".join([head, *map(base64url, (encrypted_key, nonce, sealed[:-16], sealed[-16:]))])


def agree(sender: Recipient, recipient: Recipient) -> bytes:
    """Return the shared secret. Both keys are on one curve."""
    if isinstance(sender, x25519.X25519PrivateKey):
        assert isinstance(recipient, x25519.X25519PrivateKey)  # noqa: S101 - of one curve
        return sender.exchange(recipient.public_key())
    assert isinstance(sender, ec.EllipticCurvePrivateKey)  # noqa: S101 - RSA has no agreement
    assert isinstance(recipient, ec.EllipticCurvePrivateKey)  # noqa: S101 - of one curve
    return sender.exchange(ec.ECDH(), recipient.public_key())


def public_jwk(kind: str, key: Recipient) -> dict[str, str]:
    """Return the public key as a JWK (RFC 7518, section 6.2.1; RFC 8037, section 2)."""
    if isinstance(key, x25519.X25519PrivateKey):
        raw = key.public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": kind, "x": base64url(raw)}
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - RSA has no epk
    numbers = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    x, y = (base64url(each.to_bytes(size, "big")) for each in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": kind, "x": x, "y": y}


def base64url(value: bytes) -> str:
    """Encode as RFC 7515, section 2, says."""
    return urlsafe_b64encode(value).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    """Decode base64url without padding."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _wrap(shared: bytes, content_key: bytes) -> bytes:
    # AlgorithmID, PartyUInfo, PartyVInfo, SuppPubInfo: RFC 7518, section 4.6.2.
    name = _AGREEMENT.encode()
    other = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    return aes_key_wrap(ConcatKDFHash(SHA256(), 32, other).derive(shared), content_key)


def _encrypt(recipient: rsa.RSAPrivateKey, content_key: bytes, padding: Padding) -> bytes:
    """Encrypt with the public key, by hand: libraries draw the seed of OAEP at random."""
    size = recipient.key_size // 8
    public = recipient.public_key().public_numbers()
    encoded = int.from_bytes(padding(content_key, size), "big")
    return pow(encoded, public.e, public.n).to_bytes(size, "big")


def _mgf1(seed: bytes, length: int, hashed: str) -> bytes:
    """Return the mask of RFC 8017, appendix B.2.1."""
    blocks = (
        hashlib.new(hashed, seed + count.to_bytes(4, "big"), usedforsecurity=False).digest()
        for count in range(length // 20 + 1)
    )
    return b"".join(blocks)[:length]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
