"""Is a certificate on its issuer's revocation list? (RFC 5280, section 6.3.3)

The contract of this room: `check_revocation` returns nothing, raises DeviceRevokedError where the
list names the certificate, or RevocationUnknownError where the list cannot say.
"""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from birthmark_sma.errors import DeviceRevokedError, RevocationUnknownError
from birthmark_sma.pki.profiles import CLOCK_SKEW

_KNOWN = (x509.CRLNumber, x509.AuthorityKeyIdentifier)


def check_revocation(
    certificate: x509.Certificate,
    *,
    issuer: x509.Certificate,
    crl: x509.CertificateRevocationList,
    now: datetime,
) -> None:
    """Judge a certificate by a list of its issuer's, whose own path is verified already.

    A revocation counts from the beginning, whenever the bundle says it was captured: that time is
    the word of a key which may be in other hands.
    """
    _check_list(crl, issuer, now)
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise DeviceRevokedError("The device's certificate is revoked.")


def _check_list(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, now: datetime
) -> None:
    if not _signed_by(crl, issuer) or crl.issuer != issuer.subject:
        raise RevocationUnknownError("The revocation list is not that of the device's issuer.")
    if crl.last_update_utc > now + CLOCK_SKEW:
        raise RevocationUnknownError("The revocation list is from the future.")
    if crl.next_update_utc is None or crl.next_update_utc < now:
        raise RevocationUnknownError("The revocation list is out of date: fetch a newer one.")
    try:
        extensions = [*crl.extensions]
    except ValueError:
        raise RevocationUnknownError("The revocation list is malformed.") from None
    if any(each.critical and not isinstance(each.value, _KNOWN) for each in extensions):
        # Such as a list of some reasons or some certificates only, or of changes (section 5.2).
        raise RevocationUnknownError("The revocation list is of a kind that is not understood.")


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
