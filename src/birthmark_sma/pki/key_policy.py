"""Which public keys may be certified, as data with the reason attached.

`check_key` is for the key that a device signs with; `check_key_encryption_key` for a second key
that table keys can be sealed to.
"""

from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x448, x25519

from birthmark_sma.errors import KeyRefusedError

DeviceKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
KeyEncryptionKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | x25519.X25519PublicKey

MAX_PEM_CHARACTERS = 8_192
RSA_EXPONENT = 65537
RSA_MIN_BITS = 2048
RSA_MAX_BITS = 4096

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A kind of key that is never certified, and why."""

    kind: type
    name: str
    why: str


_REFUSED_FOR_SIGNING = (
    _Refusal(x25519.X25519PublicKey, "X25519", "it can agree on keys but not sign"),
    _Refusal(x448.X448PublicKey, "X448", "it can agree on keys but not sign"),
    _Refusal(dsa.DSAPublicKey, "DSA", "FIPS 186-5 no longer approves it"),
    _Refusal(ed448.Ed448PublicKey, "Ed448", "too few verifiers know it"),
)
_REFUSED_FOR_ENCRYPTION = (
    _Refusal(ed25519.Ed25519PublicKey, "Ed25519", "it can sign but not decrypt or agree"),
    _Refusal(ed448.Ed448PublicKey, "Ed448", "it can sign but not decrypt or agree"),
    _Refusal(dsa.DSAPublicKey, "DSA", "it can sign but not decrypt or agree"),
    _Refusal(x448.X448PublicKey, "X448", "too few devices know it"),
)
_FOR_SIGNING = "Use EC P-256 or P-384, RSA of 2048 to 4096 bits with e = 65537, or Ed25519."
_FOR_ENCRYPTION = "Use EC P-256 or P-384, X25519, or RSA of 2048 to 4096 bits with e = 65537."


def load_public_key(pem: str) -> object:
    """Parse a PEM SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).

    Raises KeyRefusedError for anything else, a private key among it.
    """
    if len(pem) > MAX_PEM_CHARACTERS:
        raise KeyRefusedError(f"A public key in PEM has at most {MAX_PEM_CHARACTERS} characters.")
    if "PRIVATE KEY" in pem:
        raise KeyRefusedError(
            "This is a private key. Send the public key, and never let the private key leave the"
            " device; this one must be replaced."
        )
    if "BEGIN PUBLIC KEY" not in pem:
        raise KeyRefusedError(
            "The public key is not a PEM SubjectPublicKeyInfo, which begins"
            " '-----BEGIN PUBLIC KEY-----'."
        )
    try:
        return serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefusedError(
            "The public key cannot be read: its PEM is damaged, or its algorithm is unknown."
        ) from None


def check_key(key: object) -> DeviceKey:
    """Return the key if a device may sign with it, else raise KeyRefusedError with the reason."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        if not is_sound_ed25519(key.public_bytes_raw()):
            raise KeyRefusedError(f"This is no point of Ed25519 that can sign. {_FOR_SIGNING}")
        return key
    return _check_ec_or_rsa(key, _REFUSED_FOR_SIGNING, _FOR_SIGNING)


def check_key_encryption_key(key: object) -> KeyEncryptionKey:
    """Return the key if table keys can be sealed to it, else raise KeyRefusedError."""
    if isinstance(key, x25519.X25519PublicKey):
        _check_x25519(key)
        return key
    return _check_ec_or_rsa(key, _REFUSED_FOR_ENCRYPTION, _FOR_ENCRYPTION)


def _check_ec_or_rsa(
    key: object, refused: tuple[_Refusal, ...], remedy: str
) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise KeyRefusedError(f"The curve {key.curve.name} is not accepted. {remedy}")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key, remedy)
        return key
    for refusal in refused:
        if isinstance(key, refusal.kind):
            raise KeyRefusedError(f"{refusal.name} is not accepted: {refusal.why}. {remedy}")
    raise KeyRefusedError(f"This kind of key is not accepted. {remedy}")


def _check_rsa(key: rsa.RSAPublicKey, remedy: str) -> None:
    if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
        raise KeyRefusedError(f"An RSA key of {key.key_size} bits is not accepted. {remedy}")
    numbers = key.public_numbers()
    if numbers.e != RSA_EXPONENT:
        raise KeyRefusedError(f"An RSA key with e = {numbers.e} is not accepted. {remedy}")
    if _has_small_factor(numbers.n):
        raise KeyRefusedError(f"This RSA modulus has a small factor. {remedy}")


def _check_x25519(key: x25519.X25519PublicKey) -> None:
    """Refuse a point of small order, with which every agreement gives zero (RFC 7748, 6.1)."""
    try:
        x25519.X25519PrivateKey.from_private_bytes(b"\x01" * 32).exchange(key)
    except ValueError:
        raise KeyRefusedError(f"This X25519 key has a small order. {_FOR_ENCRYPTION}") from None


_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
# The y coordinates of the eight points whose order divides 8: of order 1, 2, 4 and 8.
_Y_OF_ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER = frozenset({1, _P - 1, 0, _Y_OF_ORDER_8, _P - _Y_OF_ORDER_8})


def is_sound_ed25519(encoded: bytes) -> bool:
    """Say whether 32 bytes encode a point that can sign: canonical, on the curve, no small order.

    The library takes any 32 bytes. Under a point of small order a signature can be made up without
    a private key, so that even a CSR would prove nothing. RFC 8032, section 5.1.3.
    """
    number = int.from_bytes(encoded, "little")
    y, x_is_odd = number & ((1 << 255) - 1), number >> 255
    if y >= _P or y in _SMALL_ORDER:
        return False
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    is_square = pow(x_squared, (_P - 1) // 2, _P) in {0, 1}
    return is_square and not (x_squared == 0 and x_is_odd)


def _has_small_factor(modulus: int) -> bool:
    """Say whether a prime below 752 divides the modulus: a fault or a trap (as in SP 800-89)."""
    return any(modulus % prime == 0 for prime in _SMALL_PRIMES)


_SMALL_PRIMES = tuple(
    n for n in range(2, 752) if all(n % divisor for divisor in range(2, int(n**0.5) + 1))
)
