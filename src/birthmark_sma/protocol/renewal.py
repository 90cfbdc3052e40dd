"""The proof in a request to renew a device certificate, and the certificate's id. PURE.

The device signs with the key of the certificate that it presents. The signature covers a prefix
that separates renewals from every other kind of message that the key signs, then the canonical JSON
(RFC 8785) of the digests, the time and the flag. So no relay can change the CSR, the recipient key
or the flag. The camera signs, the authority verifies. The algorithms are those of bundles: see
`bundle_signature`.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from birthmark_sma.protocol.bundle import format_time
from birthmark_sma.protocol.bundle_signature import SigningKey, sign_message, verify_message

SIGNING_PREFIX = b"birthmark-renew-v1\0"
TOLERANCE = timedelta(minutes=5)
"""The largest difference between `requested_at` and the authority's clock."""
_NO_ID = "It is not the id of a certificate (RFC 9773, section 4.1)."


@dataclass(frozen=True, slots=True)
class RenewalProof:
    """The content of a proof: SHA-256 digests of DER, in hex.

    `recipient_key_sha256` is the digest of the recipient key's SubjectPublicKeyInfo, or None if the
    device asks for no table keys. `requested_at` is in UTC.
    """

    certificate_sha256: str
    csr_sha256: str
    recipient_key_sha256: str | None = field(repr=False)
    requested_at: datetime
    supersede: bool

    def signed_bytes(self) -> bytes:
        """Return the bytes to sign: the prefix, then canonical JSON (RFC 8785, section 3.2)."""
        fields = {
            "certificate_sha256": self.certificate_sha256,
            "csr_sha256": self.csr_sha256,
            "recipient_key_sha256": self.recipient_key_sha256,
            "requested_at": format_time(self.requested_at),
            "supersede": self.supersede,
        }
        # ASCII, without numbers: sorted names and no white space are all that RFC 8785 requires.
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return SIGNING_PREFIX + text.encode("ascii")


def make_proof(
    certificate: bytes,
    csr: bytes,
    recipient_key: bytes | None,
    *,
    requested_at: datetime,
    supersede: bool,
) -> RenewalProof:
    """Return the proof for a request, from the DER of its certificate, CSR and recipient key."""
    return RenewalProof(
        certificate_sha256=_digest(certificate),
        csr_sha256=_digest(csr),
        recipient_key_sha256=None if recipient_key is None else _digest(recipient_key),
        requested_at=requested_at,
        supersede=supersede,
    )


def sign_renewal(proof: RenewalProof, key: SigningKey) -> bytes:
    """Return the signature of a proof, made with the key of the presented certificate.

    Raises BundleSignatureError for an EC key on any curve but P-256 and P-384.
    """
    return sign_message(proof.signed_bytes(), key)


def verify_renewal(proof: RenewalProof, signature: bytes, key: object) -> None:
    """Raise BundleSignatureError unless `key`, a public key, made the signature of the proof."""
    verify_message(signature, proof.signed_bytes(), key, what="request")


def certificate_id(issuer_key_identifier: bytes, certificate_serial: int) -> str:
    """Return the id under which the authority has a certificate's renewal window.

    RFC 9773, section 4.1: the keyIdentifier of the authority key identifier extension and the
    content octets of the serial number's DER, both in base64url without padding.
    """
    # DER integers are signed: a first bit of 1 needs a zero octet in front of it.
    octets = certificate_serial.to_bytes(certificate_serial.bit_length() // 8 + 1, "big")
    return f"{_base64url(issuer_key_identifier)}.{_base64url(octets)}"


def parse_certificate_id(text: str) -> tuple[bytes, int]:
    """Return the key identifier and the serial number of a text of `certificate_id`.

    Raises ValueError for every other spelling, and for a serial number that is not positive.
    """
    identifier, _, number = text.partition(".")
    try:
        key_identifier, octets = _from_base64url(identifier), _from_base64url(number)
    except ValueError:
        raise ValueError(_NO_ID) from None
    serial_number = int.from_bytes(octets, "big", signed=True)
    # One spelling only: `certificate_id` must give the text again.
    if serial_number <= 0 or certificate_id(key_identifier, serial_number) != text:
        raise ValueError(_NO_ID)
    return key_identifier, serial_number


def _digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _base64url(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def _from_base64url(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
