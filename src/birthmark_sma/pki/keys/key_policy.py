"""Decide which public keys may be certified. Refused kinds are data, with the reason attached.

`check_key` is for the key that a device signs with. `check_key_encryption_key` is for a second key,
to which table keys are sealed. Both check that the key is of an accepted kind and cannot be
factored. Call `check_is_secret` too before a key is certified or used for sealing for the first
time: it checks whether the private key is publicly known.
"""

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x448, x25519

from birthmark_sma.errors import KeyRefusedError
from birthmark_sma.pki import parsing
from birthmark_sma.pki.keys import rsa_weaknesses
from birthmark_sma.pki.keys.published_keys import PUBLISHED_KEYS
from birthmark_sma.pki.parsing import MAX_PEM_CHARACTERS, MalformedPemError, elements

__all__ = [
    "MAX_PEM_CHARACTERS",
    "RSA_EXPONENT",
    "DeviceKey",
    "KeyEncryptionKey",
    "are_one_key",
    "check_encoding",
    "check_is_secret",
    "check_key",
    "check_key_encryption_key",
    "fingerprint",
    "load_public_key",
]

DeviceKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
KeyEncryptionKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | x25519.X25519PublicKey

RSA_EXPONENT = 65537
RSA_BITS = (2048, 3072, 4096)

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}


# Kinds of keys that are never accepted: their type, their name and the reason.
_Refusals: TypeAlias = tuple[tuple[type, str, str], ...]
_REFUSED_FOR_SIGNING: _Refusals = (
    (x25519.X25519PublicKey, "X25519", "it can agree on keys but not sign"),
    (x448.X448PublicKey, "X448", "it can agree on keys but not sign"),
    (dsa.DSAPublicKey, "DSA", "FIPS 186-5 no longer approves it"),
    (ed448.Ed448PublicKey, "Ed448", "too few verifiers know it"),
)
_REFUSED_FOR_ENCRYPTION: _Refusals = (
    (ed25519.Ed25519PublicKey, "Ed25519", "it can sign but not decrypt or agree"),
    (ed448.Ed448PublicKey, "Ed448", "it can sign but not decrypt or agree"),
    (dsa.DSAPublicKey, "DSA", "it can sign but not decrypt or agree"),
    (x448.X448PublicKey, "X448", "too few devices know it"),
)
_FOR_SIGNING = "Use EC P-256 or P-384, RSA of 2048, 3072 or 4096 bits with e = 65537, or Ed25519."
_FOR_ENCRYPTION = "Use EC P-256 or P-384, X25519, or RSA of 2048, 3072 or 4096 bits with e = 65537."


# Object identifiers in DER, with tag and length, as `elements` returns them in `whole`.
_RSASSA_PSS = bytes.fromhex("06092a864886f70d01010a")
_RSAES_OAEP = bytes.fromhex("06092a864886f70d010107")
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_OBJECT_IDENTIFIER, _SEQUENCE, _INTEGER, _BIT_STRING = 0x06, 0x30, 0x02, 0x03
_HYBRID_FORMS = {6, 7}  # first byte of a hybrid EC point (ANSI X9.62)
_BARE_POINT = (
    "This is a bare EC point (ANSI X9.63, as iOS exports it): wrap it in a SubjectPublicKeyInfo,"
    " and that in PEM."
)
_CANNOT_BE_READ = "The public key cannot be read: its PEM is damaged, or its algorithm is unknown."


def load_public_key(text: str) -> object:
    """Parse a PEM SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).

    Raises KeyRefusedError for anything else, such as a private key.
    """
    if len(text) <= MAX_PEM_CHARACTERS and "PRIVATE KEY" in text:
        raise KeyRefusedError(
            "This is a private key. Make a new key pair, send its public key, and never let"
            " the private key leave the device."
        )
    if parsing.is_bare_point(parsing.bare_base64(text)):
        raise KeyRefusedError(_BARE_POINT)
    try:
        encoded = parsing.read_block(text, ("PUBLIC KEY",), "public key (SubjectPublicKeyInfo)")
    except MalformedPemError as error:
        raise KeyRefusedError(*error.args) from None
    check_encoding(encoded)
    try:
        return serialization.load_der_public_key(encoded)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefusedError(_CANNOT_BE_READ) from None


def check_encoding(encoded: bytes) -> None:
    """Raise KeyRefusedError for a DER SubjectPublicKeyInfo that the library would misread.

    The library reads RSASSA-PSS keys as rsaEncryption, and hybrid points and explicit curve
    parameters as the named curve. The certificate would then contain another key than the one that
    was sent.
    """
    if parsing.is_bare_point(encoded):
        raise KeyRefusedError(_BARE_POINT)
    try:
        [info] = elements(encoded)
        parts = elements(info.content)
        if [part.tag for part in parts] == [_INTEGER, _INTEGER]:
            raise KeyRefusedError(
                "This is a PKCS#1 RSAPublicKey (as iOS exports it): wrap it in a"
                " SubjectPublicKeyInfo."
            )
        algorithm, key = parts
        identifier, *parameters = elements(algorithm.content)
    except ValueError:
        raise KeyRefusedError(_CANNOT_BE_READ) from None
    if identifier.whole in {_RSASSA_PSS, _RSAES_OAEP}:
        name = "RSASSA-PSS" if identifier.whole == _RSASSA_PSS else "RSAES-OAEP"
        raise KeyRefusedError(
            f"{name} keys are not accepted, because bundles are signed with PKCS#1 v1.5: mark"
            " the key as rsaEncryption."
        )
    if identifier.whole == _EC_PUBLIC_KEY:
        if [each.tag for each in parameters] != [_OBJECT_IDENTIFIER]:
            raise KeyRefusedError(
                "The EC key has explicit curve parameters: name the curve (RFC 5480, 2.1.1)."
            )
        # The first byte of a BIT STRING counts the unused bits. The point follows.
        if key.tag == _BIT_STRING and key.content[1:2] and key.content[1] in _HYBRID_FORMS:
            raise KeyRefusedError(
                "The EC point is in hybrid form: send it uncompressed (RFC 5480, section 2.2)."
            )


def check_key(key: object) -> DeviceKey:
    """Return the key if a device may sign with it.

    Raises KeyRefusedError with the reason.
    """
    if isinstance(key, ed25519.Ed25519PublicKey):
        if not is_sound_ed25519(key.public_bytes_raw()):
            raise KeyRefusedError(f"This is not a point of Ed25519 that can sign. {_FOR_SIGNING}")
        return key
    return _check_ec_or_rsa(key, _REFUSED_FOR_SIGNING, _FOR_SIGNING)


def check_key_encryption_key(key: object) -> KeyEncryptionKey:
    """Return the key if table keys can be sealed to it.

    Raises KeyRefusedError with the reason.
    """
    if isinstance(key, x25519.X25519PublicKey):
        _check_x25519(key)
        return key
    return _check_ec_or_rsa(key, _REFUSED_FOR_ENCRYPTION, _FOR_ENCRYPTION)


def _check_ec_or_rsa(
    key: object, refused: _Refusals, remedy: str
) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise KeyRefusedError(f"The curve {key.curve.name} is not accepted. {remedy}")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key, remedy)
        return key
    for kind, name, why in refused:
        if isinstance(key, kind):
            raise KeyRefusedError(f"{name} is not accepted: {why}. {remedy}")
    raise KeyRefusedError(f"This kind of key is not accepted. {remedy}")


def _check_rsa(key: rsa.RSAPublicKey, remedy: str) -> None:
    size = KeyRefusedError(f"An RSA key of {key.key_size} bits is not accepted. {remedy}")
    # The size bounds the work of `find_weakness`. The exact size is checked last, so that a weak
    # key is reported as weak.
    if not min(RSA_BITS) <= key.key_size <= max(RSA_BITS):
        raise size
    numbers = key.public_numbers()
    if numbers.e != RSA_EXPONENT:
        raise KeyRefusedError(f"An RSA key with e = {numbers.e} is not accepted. {remedy}")
    weakness = rsa_weaknesses.find_weakness(numbers.n)
    if weakness is not None:
        raise KeyRefusedError(f"This RSA modulus {weakness}. Make a new key pair.")
    if key.key_size not in RSA_BITS:
        raise size


def _check_x25519(key: x25519.X25519PublicKey) -> None:
    """Raise KeyRefusedError for a point of small order, whose shared secret is always zero.

    RFC 7748, section 6.1.
    """
    try:
        # The library raises ValueError if the shared secret is zero. Any private key shows that.
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
    """Return True if 32 bytes encode a point that can sign (RFC 8032, section 5.1.3).

    Such a point is in canonical encoding, on the curve and not of small order. The library accepts
    any 32 bytes. Under a point of small order, anyone can forge a signature without a private key,
    so even a CSR would prove nothing.
    """
    number = int.from_bytes(encoded, "little")
    y, x_is_odd = number & ((1 << 255) - 1), number >> 255
    if y >= _P or y in _SMALL_ORDER:
        return False
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    is_square = pow(x_squared, (_P - 1) // 2, _P) in {0, 1}
    return is_square and not (x_squared == 0 and x_is_odd)


def check_is_secret(
    key: DeviceKey | KeyEncryptionKey, breathe: Callable[[], None] = lambda: None
) -> None:
    """Raise KeyRefusedError if the private key of an accepted public key is publicly known.

    An RSA key takes long to check (see `rsa_weaknesses.is_prime`, which also explains `breathe`).
    """
    place = PUBLISHED_KEYS.get(fingerprint(key))
    if place is not None:
        raise KeyRefusedError(
            f"The private key of this public key is published ({place}): make a new key pair."
        )
    if isinstance(key, rsa.RSAPublicKey) and rsa_weaknesses.is_prime(
        key.public_numbers().n, breathe
    ):
        raise KeyRefusedError(
            "This RSA modulus is a prime, so anyone can compute the private key: make a new"
            " key pair."
        )


def fingerprint(key: DeviceKey | KeyEncryptionKey) -> bytes:
    """Return the SHA-256 of a key's DER SubjectPublicKeyInfo (32 bytes)."""
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).digest()


def are_one_key(signing: DeviceKey, recipient: KeyEncryptionKey) -> bool:
    """Return True if a signing key and a recipient key have the same private key.

    An Ed25519 key and the X25519 key of the same scalar count as the same: u = (1 + y) / (1 - y)
    modulo p (RFC 7748, section 4.1).
    """
    if isinstance(signing, ed25519.Ed25519PublicKey):
        if not isinstance(recipient, x25519.X25519PublicKey):
            return False
        y = int.from_bytes(signing.public_bytes_raw(), "little") & ((1 << 255) - 1)
        u = (1 + y) * pow(1 - y, -1, _P) % _P
        return u == int.from_bytes(recipient.public_bytes_raw(), "little") & ((1 << 255) - 1)
    return fingerprint(signing) == fingerprint(recipient)
