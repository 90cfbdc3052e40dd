"""Make camera tokens that open under two keys, to two NUC hashes: AES-GCM does not commit to a key.

Tag = E(K, J0) + C1*H^3 + C2*H^2 + L*H in GF(2^128), with H = E(K, 0) (SP 800-38D, section 6.4). For
two keys and any C1, the equation of both tags is linear in C2.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, PUBLISHED_CLIENTS, derive_key

_REDUCTION = 0xE1 << 120
_LENGTHS = 256  # no associated data, 256 bits of ciphertext


class Collision(NamedTuple):
    """A token, and the NUC hash that it contains under each key derivation."""

    token: CameraToken
    normative: bytes
    published: bytes


def collide(master_key: bytes, table_id: int, key_index: int = 7) -> Collision:
    """Return a token that opens under both key derivations."""
    nonce = secrets.token_bytes(12)
    keys = [derive_key(master_key, key_index, each) for each in (NORMATIVE, PUBLISHED_CLIENTS)]
    sealed = forge(keys, nonce)
    hashes = [AESGCM(key).decrypt(nonce, sealed, None) for key in keys]
    return Collision(CameraToken(sealed, table_id, key_index, nonce), *hashes)


def forge(keys: Sequence[bytes], nonce: bytes) -> bytes:
    """Return 48 bytes (ciphertext and tag) that open under both keys."""
    first = secrets.randbits(128)
    (h1, s1), (h2, s2) = ((_block(key, bytes(16)), _mask(key, nonce)) for key in keys)
    right = _times(first, _power(h1, 3) ^ _power(h2, 3)) ^ _times(_LENGTHS, h1 ^ h2) ^ s1 ^ s2
    # x**(2**128 - 2) is the inverse of x in GF(2^128).
    second = _times(right, _power(_power(h1, 2) ^ _power(h2, 2), 2**128 - 2))
    tag = s1 ^ _times(first, _power(h1, 3)) ^ _times(second, _power(h1, 2)) ^ _times(_LENGTHS, h1)
    return b"".join(each.to_bytes(16, "big") for each in (first, second, tag))


def collide_for(
    master_key: bytes, table_id: int, register: Callable[[bytes, str], list[int]]
) -> Collision:
    """Return a collision whose two NUC hashes belong to devices with this table.

    `register` provisions a device with a NUC hash for the named derivation, and returns the
    device's tables. Tables are random, so this repeats until both devices have the table.
    """
    while True:
        made = collide(master_key, table_id)
        tables = register(made.normative, "normative"), register(made.published, "published")
        if all(table_id in each for each in tables):
            return made


def _mask(key: bytes, nonce: bytes) -> int:
    return _block(key, nonce + b"\0\0\0\1")


def _block(key: bytes, block: bytes) -> int:
    return int.from_bytes(Cipher(AES(key), ECB()).encryptor().update(block), "big")


def _times(one: int, other: int) -> int:
    """Multiply two blocks in GF(2^128) (SP 800-38D, section 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_REDUCTION if other & 1 else 0)
    return product


def _power(base: int, exponent: int) -> int:
    result = 1 << 127
    while exponent:
        if exponent & 1:
            result = _times(result, base)
        base = _times(base, base)
        exponent >>= 1
    return result
