"""Sign and verify the messages of devices. The kind of the device key decides the algorithm.

| device key | signature |
| --- | --- |
| EC P-256 | ECDSA with SHA-256, DER (FIPS 186-5; RFC 3279, section 2.2.3) |
| EC P-384 | ECDSA with SHA-384, DER |
| RSA | RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section 8.2): every key store has it |
| Ed25519 | Ed25519 (RFC 8032, section 5.1) |

A bundle never names its algorithm, so an attacker cannot choose a weaker one.
"""

from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from birthmark_sma.errors import BundleSignatureError
from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle

SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_ECDSA: dict[str, ec.ECDSA] = {
    "secp256r1": ec.ECDSA(hashes.SHA256()),
    "secp384r1": ec.ECDSA(hashes.SHA384()),
}


def sign_bundle(content: UnsignedBundle, key: SigningKey) -> Bundle:
    """Sign a bundle with the device's private key.

    For a key in hardware, do not call this function: sign `content.signed_bytes()` in the hardware,
    with the algorithm from the table above, and build a `Bundle` from the result.

    Raises BundleSignatureError for an EC key on any curve but P-256 and P-384.
    """
    return Bundle(content, sign_message(content.signed_bytes(), key))


def sign_message(message: bytes, key: SigningKey) -> bytes:
    """Return a device's signature over bytes that begin with the prefix of their kind of message.

    Raises BundleSignatureError for an EC key on any curve but P-256 and P-384.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, _ecdsa(key.curve))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message)


def verify_signature(bundle: Bundle, key: object) -> None:
    """Raise BundleSignatureError unless `key`, a public key, made the bundle's signature.

    Also raises BundleSignatureError for a kind of key that no device has.
    """
    verify_message(bundle.signature, bundle.content.signed_bytes(), key, what="bundle")


def verify_message(signature: bytes, message: bytes, key: object, *, what: str) -> None:
    """Raise BundleSignatureError unless `key`, a public key, made the signature over the message.

    `what` names the kind of message in the error. Also raises BundleSignatureError for a kind of
    key that no device has.
    """
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, _ecdsa(key.curve))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            raise BundleSignatureError("No device signs with a key of this kind.")
    except InvalidSignature:
        raise BundleSignatureError(_misfit(signature, key, what)) from None


def _misfit(signature: bytes, key: object, what: str) -> str:
    """Return the error sentence, with a hint if the signature seems to be in IEEE P1363 form."""
    sentence = f"The device's signature does not verify for this {what}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.key_size + 7) // 8
        if len(signature) == 2 * size:
            return f"{sentence}: it has the length of r and s (IEEE P1363). Send it in DER."
    return f"{sentence}."


def _ecdsa(curve: ec.EllipticCurve) -> ec.ECDSA:
    if curve.name not in _ECDSA:
        raise BundleSignatureError(f"No device signs with a key on {curve.name}.")
    return _ECDSA[curve.name]
