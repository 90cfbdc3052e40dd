"""Derive test keys from labels, so that no file contains a private key.

Anyone can derive them, so they protect nothing. docs/vectors.md has the rule: a scalar or seed is
the SHA-2 digest of the label, in the length that the curve needs.
"""

import hashlib
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

_EXPONENT = 65537


def secret(label: str) -> bytes:
    """Return the 32 bytes of a label, for a NUC hash, a master key or a seed."""
    return hashlib.sha256(label.encode()).digest()


def p256(label: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key whose scalar is the SHA-256 of the label."""
    return ec.derive_private_key(int.from_bytes(secret(label), "big"), ec.SECP256R1())


def p384(label: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-384 key whose scalar is the SHA-384 of the label."""
    digest = hashlib.sha384(label.encode()).digest()
    return ec.derive_private_key(int.from_bytes(digest, "big"), ec.SECP384R1())


def p521(label: str) -> ec.EllipticCurvePrivateKey:
    """Return a key on a curve that no device uses. Its scalar is the SHA-512 of the label."""
    digest = hashlib.sha512(label.encode()).digest()
    return ec.derive_private_key(int.from_bytes(digest, "big"), ec.SECP521R1())


def ed25519_key(label: str) -> ed25519.Ed25519PrivateKey:
    """Return the Ed25519 key whose seed is the SHA-256 of the label."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(secret(label))


def x25519_key(label: str) -> x25519.X25519PrivateKey:
    """Return the X25519 key whose bytes are the SHA-256 of the label."""
    return x25519.X25519PrivateKey.from_private_bytes(secret(label))


@cache
def rsa_key(label: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of two primes that are derived from the label."""
    p, q = (_prime(f"{label}, prime {number}", bits // 2) for number in (1, 2))
    exponent = pow(_EXPONENT, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=exponent,
        dmp1=exponent % (p - 1),
        dmq1=exponent % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(_EXPONENT, p * q),
    ).private_key()


def _prime(label: str, bits: int) -> int:
    """Return the first probable prime (Fermat, four bases) at or above the label's number."""
    stream = b"".join(secret(f"{label}, block {block}") for block in range(bits // 256))
    # Its two highest bits are set, so that the product of two has twice as many bits.
    candidate = int.from_bytes(stream, "big") | 0b11 << (bits - 2) | 1
    while any(candidate % small == 0 for small in _SMALL) or any(
        pow(base, candidate - 1, candidate) != 1 for base in (2, 3, 5, 7)
    ):
        candidate += 2
    return candidate


_SMALL = [n for n in range(3, 2_000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
