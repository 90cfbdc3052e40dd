"""Read a request for renewal, and verify its proof with the key of the presented certificate.

`renewal.service` calls it in a signing thread. All of this happens before the caller is known, so
the work is bounded: PEM texts of 8,192 characters are decoded and hashed, and one signature is
verified, under a key that the authority has certified before. The CSR and the recipient key must
not be parsed here.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.errors import (
    BundleSignatureError,
    DeviceCertificateRefusedError,
    KeyEncryptionKeyRefusedError,
    RenewalRefusedError,
    RenewalTimeRefusedError,
)
from birthmark_sma.pki import csr
from birthmark_sma.pki.parsing import MalformedPemError, read_block
from birthmark_sma.protocol.bundle import format_time
from birthmark_sma.protocol.renewal import TOLERANCE, RenewalProof, make_proof, verify_renewal

_LONGEST_DIFFERENCE = 86_400  # seconds; a larger one is told in days


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """A request to renew a certificate, as a device sends it. The first three are PEM."""

    device_certificate: str
    csr: str
    key_encryption_public_key: str | None
    supersede: bool
    requested_at: datetime
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """The certificate of a request, and the proof that its signature must cover.

    `certificate_serial` is lower-case hex. `key_fingerprint` is the SHA-256 of the DER
    SubjectPublicKeyInfo.
    """

    certificate_serial: str
    key_fingerprint: bytes = field(repr=False)
    public_key: object
    proof: RenewalProof

    @property
    def csr_sha256(self) -> bytes:
        """Return the SHA-256 of the CSR's DER, 32 bytes."""
        return bytes.fromhex(self.proof.csr_sha256)


def read_request(request: RenewalRequest) -> PresentedCertificate:
    """Return the certificate of a request with the proof, which is not verified yet.

    Raises DeviceCertificateRefusedError, CsrRefusedError or KeyEncryptionKeyRefusedError for a text
    that is not one PEM block of its kind.
    """
    der, certificate = _read_certificate(request.device_certificate)
    try:
        public_key = certificate.public_key()
        key_der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise DeviceCertificateRefusedError(
            "The public key of the device certificate cannot be read."
        ) from None
    proof = make_proof(
        der,
        csr.decode(request.csr),
        _decode_recipient(request.key_encryption_public_key),
        requested_at=request.requested_at,
        supersede=request.supersede,
    )
    return PresentedCertificate(
        certificate_serial=f"{certificate.serial_number:x}",
        key_fingerprint=hashlib.sha256(key_der).digest(),
        public_key=public_key,
        proof=proof,
    )


def check_proof(presented: PresentedCertificate, signature: bytes, now: datetime) -> None:
    """Raise RenewalRefusedError for a wrong signature, RenewalTimeRefusedError for a wrong time.

    Call it only for a key that belongs to this certificate in the register: verifying under an
    arbitrary key may be slow, and proves nothing.
    """
    try:
        verify_renewal(presented.proof, signature, presented.public_key)
    except BundleSignatureError as error:
        raise RenewalRefusedError(
            f"{error} Sign with the key of device_certificate: docs/protocol.md says which bytes."
        ) from None
    difference = presented.proof.requested_at - now
    if abs(difference) > TOLERANCE:
        seconds = round(abs(difference).total_seconds())
        amount = (
            f"{seconds:,} seconds"
            if seconds <= _LONGEST_DIFFERENCE
            else f"{seconds // 86_400:,} days"
        )
        way = "ahead of" if difference > timedelta(0) else "behind"
        raise RenewalTimeRefusedError(
            f"requested_at is {amount} {way} this server's time, {format_time(now)}. At most 5"
            " minutes are accepted. Set the device's clock, and sign again."
        )


def _read_certificate(pem: str) -> tuple[bytes, x509.Certificate]:
    try:
        der = read_block(pem, ("CERTIFICATE",), "device certificate")
        return der, x509.load_der_x509_certificate(der)
    except MalformedPemError as error:
        raise DeviceCertificateRefusedError(*error.args) from None
    except (ValueError, x509.InvalidVersion):
        raise DeviceCertificateRefusedError(
            "The device certificate cannot be read: its PEM does not contain an X.509 certificate."
        ) from None


def _decode_recipient(pem: str | None) -> bytes | None:
    if pem is None:
        return None
    try:
        return read_block(pem, ("PUBLIC KEY",), "public key (SubjectPublicKeyInfo)")
    except MalformedPemError as error:
        raise KeyEncryptionKeyRefusedError(*error.args) from None
