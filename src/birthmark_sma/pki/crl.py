"""Sign certificate revocation lists (CRLs) of the root and the intermediate (RFC 5280, section 5).

The authority calls `sign_crl`. `client.revocation` verifies lists on the other side.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509

from birthmark_sma.errors import ProfileViolationError
from birthmark_sma.pki import der
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.profile_check import authority_key_identifier

LIFETIME = timedelta(days=1)
"""The validity of an intermediate's list: a verifier must fetch the next one within this time."""

REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key_compromise": x509.ReasonFlags.key_compromise,
    "affiliation_changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation_of_operation": x509.ReasonFlags.cessation_of_operation,
    "privilege_withdrawn": x509.ReasonFlags.privilege_withdrawn,
}
"""The reasons for the revocation of a device certificate (RFC 5280, section 5.3.1)."""

OLDEST_INVALIDITY = datetime(1970, 1, 1, tzinfo=UTC)
"""No invalidityDate is earlier. Not every program can read a time of the first centuries."""

HOLD = "certificate_hold"
"""The reason of a suspended device's certificate, which may leave the list again."""
_FLAGS = REASONS | {HOLD: x509.ReasonFlags.certificate_hold}


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """One entry of a list. `reason` is a key of REASONS, or HOLD.

    `invalid_since` is the time since when the key may be in other hands (section 5.3.2), or None.
    """

    certificate_serial: int
    revoked_at: datetime
    reason: str
    invalid_since: datetime | None = None


@lru_cache(maxsize=256)  # all devices of an act have the same extensions
def _entry_extensions(reason: str, invalid_since: datetime | None) -> bytes:
    extensions: list[x509.ExtensionType] = []
    # Section 5.3.1: leave out the reason code instead of writing "unspecified".
    if reason != "unspecified":
        extensions.append(x509.CRLReason(_FLAGS[reason]))
    if invalid_since is not None:
        # Whole seconds, rounded down: a picture of this very second must not be kept.
        extensions.append(x509.InvalidityDate(_whole_seconds(invalid_since)))
    return der.crl_entry_extensions(*extensions)


def sign_crl(
    revoked: Iterable[RevokedCertificate],
    *,
    issuer: x509.Certificate,
    signer: Signer,
    number: int,
    this_update: datetime,
    next_update: datetime,
) -> bytes:
    """Sign the list of all revoked certificates, and return it in DER.

    `number` must grow from list to list (section 5.2.3). The time is linear in the number of
    entries. A revocation dated after `this_update`, by a clock that was fast, gets the date
    `this_update`: a list must not contain future dates.

    Raises ProfileViolationError if the signer's key does not belong to the issuer's certificate.
    """
    if issuer.public_key() != signer.public_key:
        raise ProfileViolationError("The signing key does not belong to the issuer's certificate.")
    issued = _whole_seconds(this_update)
    tbs = der.tbs_cert_list(
        issuer=issuer.subject,
        this_update=issued,
        next_update=_whole_seconds(next_update),
        revoked_certificates=[
            der.revoked_certificate(
                each.certificate_serial,
                min(each.revoked_at, issued),
                _entry_extensions(each.reason, each.invalid_since),
            )
            for each in revoked
        ],
        extensions=(authority_key_identifier(issuer), x509.CRLNumber(number)),
        signature_algorithm=signer.signature_algorithm,
    )
    return der.signed(tbs, signer.signature_algorithm, signer.sign(tbs))


def _whole_seconds(time: datetime) -> datetime:
    return time.replace(microsecond=0)
