"""Certificate revocation lists of the intermediate (RFC 5280, section 5)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.errors import ProfileViolationError
from birthmark_sma.pki.conformance import authority_key_identifier
from birthmark_sma.pki.profiles import CLOCK_SKEW
from birthmark_sma.pki.signer import Signer

LIFETIME = timedelta(days=1)
"""How long a list may be relied on before a verifier fetches the next."""

REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key_compromise": x509.ReasonFlags.key_compromise,
    "affiliation_changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation_of_operation": x509.ReasonFlags.cessation_of_operation,
    "privilege_withdrawn": x509.ReasonFlags.privilege_withdrawn,
}
"""The reasons for which a device certificate may be revoked. RFC 5280, section 5.3.1."""


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """One entry: whose serial number, when, and why (a key of REASONS)."""

    certificate_serial: int
    revoked_at: datetime
    reason: str


def sign_crl(
    revoked: Iterable[RevokedCertificate],
    *,
    issuer: x509.Certificate,
    signer: Signer,
    number: int,
    now: datetime,
) -> x509.CertificateRevocationList:
    """Sign the list of all revoked certificates. `number` must grow from list to list (5.2.3).

    Raises ProfileViolationError where the signer's key is not the issuer's.
    """
    if issuer.public_key() != signer.public_key:
        raise ProfileViolationError("The signing key does not belong to the issuer's certificate.")
    now = now.replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + LIFETIME)
        .add_extension(authority_key_identifier(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(_entry(entry))
    return builder.sign(signer.key, signer.hash_algorithm)


def _entry(revoked: RevokedCertificate) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(revoked.certificate_serial)
        .revocation_date(revoked.revoked_at.replace(microsecond=0))
    )
    reason = REASONS[revoked.reason]
    # Section 5.3.1: the reason code is left out rather than saying "unspecified".
    if reason is not x509.ReasonFlags.unspecified:
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()
