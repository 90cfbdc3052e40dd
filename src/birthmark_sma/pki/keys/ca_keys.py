"""Generate, encrypt and load the private keys of CAs, and sign with them.

The authority calls it. In `pki`, only this module and `encrypted_key` draw keys and salts, inside
the cryptography library. The repr of a key object must never show the key. A key leaves the process
only encrypted: callers of `private_der` must encrypt its result at once.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from birthmark_sma.errors import WrongSecretError
from birthmark_sma.pki.keys.encrypted_key import encrypt
from birthmark_sma.pki.keys.key_policy import RSA_EXPONENT

SigningKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
VerifyingKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_WITH_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
_SHA256_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")


class CaKeyType(StrEnum):
    """The kinds of key that a CA of this authority can have."""

    RSA_4096 = "rsa-4096"
    EC_P384 = "ec-p384"
    EC_P256 = "ec-p256"


@dataclass(frozen=True, slots=True)
class Signer:
    """The private key of a CA, with the matching hash and signature algorithms."""

    key: SigningKey = field(repr=False)

    @property
    def public_key(self) -> VerifyingKey:
        """Return the public key."""
        return self.key.public_key()

    @property
    def hash_algorithm(self) -> hashes.SHA256 | hashes.SHA384:
        """Return SHA-384 for P-384, whose strength it matches, and SHA-256 for all other keys."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey) and self.key.key_size == 384:
            return hashes.SHA384()
        return hashes.SHA256()

    @property
    def signature_algorithm(self) -> bytes:
        """Return the AlgorithmIdentifier of its signatures in DER (RFC 5758, 3.2; RFC 4055, 5)."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return _SHA256_WITH_RSA
        return _ECDSA_WITH_SHA384 if self.key.key_size == 384 else _ECDSA_WITH_SHA256

    def sign(self, data: bytes) -> bytes:
        """Return the signature over `data`.

        RSA-4096 takes milliseconds: do not call this method on an event loop.
        """
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), self.hash_algorithm)
        return self.key.sign(data, ec.ECDSA(self.hash_algorithm))

    @property
    def takes_long(self) -> bool:
        """Return True for RSA: a signature takes about one millisecond of a core."""
        return isinstance(self.key, rsa.RSAPrivateKey)

    def private_der(self) -> bytes:
        """Return the key as unencrypted PKCS#8 in DER (RFC 5958). Callers encrypt it at once."""
        return self.key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def encrypted_pem(self, passphrase: bytes) -> str:
        """Return the key as PEM PKCS#8, encrypted under the passphrase (RFC 5958, RFC 8018)."""
        return encrypt(self.key, passphrase)


def generate(key_type: CaKeyType) -> Signer:
    """Generate a new CA key. RSA-4096 takes about one second of a core."""
    match key_type:
        case CaKeyType.RSA_4096:
            return Signer(rsa.generate_private_key(RSA_EXPONENT, 4096))
        case CaKeyType.EC_P384:
            return Signer(ec.generate_private_key(ec.SECP384R1()))
        case CaKeyType.EC_P256:
            return Signer(ec.generate_private_key(ec.SECP256R1()))


def key_type_of(public_key: object) -> CaKeyType:
    """Return the key type of a CA. A key of another kind counts as the default, RSA-4096."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return CaKeyType.EC_P384 if public_key.key_size == 384 else CaKeyType.EC_P256
    return CaKeyType.RSA_4096


def load_encrypted(pem: str, passphrase: bytes) -> Signer:
    """Decrypt an encrypted PKCS#8 key.

    Raises WrongSecretError if the passphrase is wrong, or if the key is neither RSA nor EC.
    """
    try:
        key = serialization.load_pem_private_key(pem.encode(), passphrase)
    except (ValueError, TypeError):
        raise WrongSecretError(
            "The passphrase does not decrypt the CA key. Use the CA_PASSWORD with which this"
            " authority was created."
        ) from None
    return _of_this_authority(key)


def load_der(der: bytes) -> Signer:
    """Load a key that `private_der` returned.

    Raises WrongSecretError if the key is neither RSA nor EC.
    """
    return _of_this_authority(serialization.load_der_private_key(der, None))


def _of_this_authority(key: object) -> Signer:
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise WrongSecretError(
            "The CA key is neither RSA nor EC, so this authority did not make it. Restore its own"
            " key."
        )
    return Signer(key)
