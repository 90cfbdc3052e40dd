"""Encrypt private keys as PKCS#8 (RFC 5958) with a slow key derivation, against password guessing.

The cryptography library writes PBES2 (RFC 8018) with PBKDF2, HMAC-SHA256 and AES-256-CBC, but
always with 2,048 rounds. An attacker guessed a passphrase of season and year in 0.2 s under that.
So this module takes the library's output apart, and encrypts the key again with 600,000 rounds. The
salt and the initialisation vector are those that the library drew.
"""

import base64
import re

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509 import ObjectIdentifier

ROUNDS = 600_000
"""About 0.2 s of a core per guess, the same as the scrypt of the key-encryption key (KEK)."""
_SCRYPT_LEAST = 2**14 * 8
"""The minimum of N times r: OpenSSL's default, which takes 16 MiB of memory per guess."""
_KEY_BYTES = 32
_PBES2 = ObjectIdentifier("1.2.840.113549.1.5.13")
_PBKDF2 = ObjectIdentifier("1.2.840.113549.1.5.12")
_SCRYPT = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_BEGIN, _END = (f"-----{word} ENCRYPTED PRIVATE KEY-----" for word in ("BEGIN", "END"))
_PEM = re.compile(rf"{_BEGIN}\s+([0-9A-Za-z+/=\s]+){_END}")


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _EncryptedPrivateKeyInfo:
    scheme: _Algorithm
    encrypted_data: bytes


@asn1.sequence
class _Pbes2:
    derivation: _Algorithm
    encryption: _Algorithm


@asn1.sequence
class _Pbkdf2:
    salt: bytes
    rounds: int
    length: int | None
    prf: _Algorithm | None


@asn1.sequence
class _Scrypt:
    salt: bytes
    n: int
    r: int
    p: int
    length: int | None


def encrypt(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes) -> str:
    """Return a key as PEM PKCS#8, encrypted under a passphrase. Takes about 0.2 s of a core."""
    # Let the library choose the salt, the IV and the ASN.1 structure; only its round count is too
    # low.
    quick = key.private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
    )
    scheme = asn1.decode_der(_EncryptedPrivateKeyInfo, quick).scheme
    parts = scheme.parameters.parse(_Pbes2)
    derivation = parts.derivation.parameters.parse(_Pbkdf2)
    iv = parts.encryption.parameters.parse(bytes)

    derived = PBKDF2HMAC(SHA256(), _KEY_BYTES, derivation.salt, ROUNDS).derive(passphrase)
    padder = PKCS7(algorithms.AES256.block_size).padder()
    plaintext = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    padded = padder.update(plaintext) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(derived), modes.CBC(iv)).encryptor()
    derivation = _Pbkdf2(salt=derivation.salt, rounds=ROUNDS, length=None, prf=derivation.prf)
    return _pem(
        _EncryptedPrivateKeyInfo(
            scheme=_with(
                scheme,
                _Pbes2(derivation=_with(parts.derivation, derivation), encryption=parts.encryption),
            ),
            encrypted_data=encryptor.update(padded) + encryptor.finalize(),
        )
    )


def is_slow_to_guess(pem: str) -> bool:
    """Return True if a guess at an encrypted PKCS#8 key costs at least as much as with `encrypt`.

    Keys that OpenSSL wrote with scrypt count as slow. Unreadable text does not.
    """
    found = _PEM.search(pem)
    if found is None:
        return False
    try:
        scheme = asn1.decode_der(_EncryptedPrivateKeyInfo, base64.b64decode(found[1])).scheme
        if scheme.algorithm != _PBES2:
            return False
        derivation = scheme.parameters.parse(_Pbes2).derivation
        if derivation.algorithm == _PBKDF2:
            pbkdf2: _Pbkdf2 = derivation.parameters.parse(_Pbkdf2)
            return pbkdf2.rounds >= ROUNDS
        if derivation.algorithm == _SCRYPT:
            scrypt: _Scrypt = derivation.parameters.parse(_Scrypt)
            return scrypt.n * scrypt.r >= _SCRYPT_LEAST
    except ValueError:
        return False
    return False


def _with(algorithm: _Algorithm, parameters: _Pbes2 | _Pbkdf2) -> _Algorithm:
    """Return the algorithm with other parameters, encoded."""
    encoded = asn1.decode_der(asn1.TLV, asn1.encode_der(parameters))
    return _Algorithm(algorithm=algorithm.algorithm, parameters=encoded)


def _pem(info: _EncryptedPrivateKeyInfo) -> str:
    body = base64.b64encode(asn1.encode_der(info)).decode()
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join((_BEGIN, *lines, _END, ""))
