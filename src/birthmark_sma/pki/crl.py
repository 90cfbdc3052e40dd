"""Certificate revocation lists of root and intermediate (RFC 5280, section 5)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.errors import ProfileViolationError
from birthmark_sma.pki import der
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.profile_check import authority_key_identifier

LIFETIME = timedelta(days=1)
"""How long a list of the intermediate may be relied on before a verifier fetches the next."""

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


# Section 5.3.1: the reason code is left out rather than saying "unspecified".
_ENTRY_EXTENSIONS = {
    name: der.crl_entry_extensions(
        *([] if flag is x509.ReasonFlags.unspecified else [x509.CRLReason(flag)])
    )
    for name, flag in REASONS.items()
}


def sign_crl(
    revoked: Iterable[RevokedCertificate],
    *,
    issuer: x509.Certificate,
    signer: Signer,
    number: int,
    this_update: datetime,
    next_update: datetime,
) -> bytes:
    """Sign the list of all revoked certificates; return it as DER.

    `number` must grow from list to list (5.2.3). The time it takes is linear in the number of
    entries. A revocation that is dated after `this_update`, by a clock that was ahead, gets that
    date: a list cannot tell of the future.

    Raises ProfileViolationError where the signer's key is not the issuer's.
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
                _ENTRY_EXTENSIONS[each.reason],
            )
            for each in revoked
        ],
        extensions=(authority_key_identifier(issuer), x509.CRLNumber(number)),
        signature_algorithm=signer.signature_algorithm,
    )
    return der.signed(tbs, signer.signature_algorithm, signer.sign(tbs))


def _whole_seconds(time: datetime) -> datetime:
    return time.replace(microsecond=0)
