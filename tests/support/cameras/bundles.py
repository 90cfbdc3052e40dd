"""Make bundles as a device does, with certificates of `tests.support.pki.chains`."""

from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.bundle_signature import SigningKey, sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.http.validation_calls import some_token


def bundle_of(
    leaf: x509.Certificate,
    intermediate: x509.Certificate,
    key: SigningKey,
    *,
    captured_at: datetime,
    camera_token: CameraToken | None = None,
) -> Bundle:
    """Return a bundle that a device signed. Its certificates may be invalid."""
    content = UnsignedBundle(
        image_hash=sha256(b"a picture").digest(),
        camera_token=camera_token or some_token(),
        device_certificate_chain=(der(leaf), der(intermediate)),
        captured_at=captured_at,
    )
    return sign_bundle(content, key)


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate in DER. Bundles contain this in base64."""
    return certificate.public_bytes(Encoding.DER)


def der_of(*texts: str) -> tuple[bytes, ...]:
    """Return PEM certificates in DER."""
    return tuple(der(x509.load_pem_x509_certificate(each.encode())) for each in texts)
