"""Bundles as a device makes them, under the authorities of `chains`."""

from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.bundle_signature import SigningKey, sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.asking import some_token


def bundle_of(
    leaf: x509.Certificate,
    intermediate: x509.Certificate,
    key: SigningKey,
    *,
    captured_at: datetime,
    camera_token: CameraToken | None = None,
) -> Bundle:
    """A bundle that a device signed, whatever its certificates are worth."""
    content = UnsignedBundle(
        image_hash=sha256(b"a picture").digest(),
        camera_token=camera_token or some_token(),
        device_certificate_chain=(pem(leaf), pem(intermediate)),
        captured_at=captured_at,
    )
    return sign_bundle(content, key)


def pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
