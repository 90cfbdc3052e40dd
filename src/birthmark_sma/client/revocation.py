"""Check whether a certificate is on its issuer's revocation list (RFC 5280, section 6.3.3).

`RevocationList.load` verifies and indexes a list once. `check_revocation`, which
`bundle_verification` calls, then costs one lookup, however long the list is. What an entry means
for a bundle depends on its reason: see `check_revocation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from birthmark_sma.errors import (
    ClientMisuseError,
    DeviceRevokedError,
    DeviceSuspendedError,
    RevocationUnknownError,
)
from birthmark_sma.pki.names import same_name
from birthmark_sma.pki.profiles import CLOCK_SKEW

# Extensions of lists that do not name all revoked certificates of the issuer.
_PARTIAL = (x509.IssuingDistributionPoint, x509.DeltaCRLIndicator)
_KNOWN = (x509.CRLNumber, x509.AuthorityKeyIdentifier)
_KNOWN_OF_ENTRIES = (x509.CRLReason, x509.InvalidityDate)
_NOT_IN_OTHER_HANDS = (x509.ReasonFlags.superseded, x509.ReasonFlags.cessation_of_operation)
_SOUND_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class RevocationEntry(NamedTuple):
    """An entry of a list. `reason` is `unspecified` if the entry has none.

    `invalid_since` is the time since when the key may be in other hands, or None.
    """

    revoked_at: datetime
    reason: x509.ReasonFlags
    invalid_since: datetime | None

    def is_good_for(self, *, received_at: datetime, captured_at: datetime | None) -> bool:
        """Return True if a bundle may be accepted though this entry lists its certificate."""
        if self.reason is x509.ReasonFlags.key_compromise:
            # Whoever has the key signs any time of capture. A key may leak after its device was
            # retired, and then the revocation is the earlier time.
            since = self.invalid_since
            return since is not None and received_at < min(since, self.revoked_at)
        if self.reason in _NOT_IN_OTHER_HANDS:
            earliest = received_at if captured_at is None else min(received_at, captured_at)
            return earliest < self.revoked_at
        return False


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A complete list whose signature and form are verified.

    `number` never decreases from list to list of one issuer (RFC 5280, section 5.2.3): never
    replace a list with one that has a lower number. The list is valid from `this_update` to
    `next_update`.
    """

    issuer: x509.Certificate
    number: int
    this_update: datetime
    next_update: datetime
    entries: Mapping[int, RevocationEntry] = field(repr=False)

    @classmethod
    def load(cls, der: bytes, *, issuer: x509.Certificate) -> Self:
        """Verify and index a list in DER. `issuer` is the intermediate of the devices' chains.

        Takes about one second for 100,000 entries. The times are not checked here:
        `check_revocation` checks them.

        Raises RevocationUnknownError with the reason if the list is malformed, incomplete, or
        signed by another issuer.
        """
        try:
            crl = x509.load_der_x509_crl(der)
            return cls._verified(crl, issuer)
        except (
            ValueError,
            TypeError,
            x509.InvalidVersion,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
            UnsupportedAlgorithm,
        ):
            raise RevocationUnknownError(
                "The revocation list cannot be read. It must be an X.509 CRL in DER."
            ) from None

    @classmethod
    def _verified(cls, crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> Self:
        _check_issuer(crl, issuer)
        number = _number_of_complete(crl)
        if crl.next_update_utc is None:
            raise RevocationUnknownError("The revocation list has no nextUpdate.")
        return cls(issuer, number, crl.last_update_utc, crl.next_update_utc, _index(crl))


def check_revocation(
    certificate: x509.Certificate,
    *,
    issuer: x509.Certificate,
    crl: RevocationList,
    now: datetime,
    received_at: datetime | None = None,
    captured_at: datetime | None = None,
) -> None:
    """Raise DeviceRevokedError if `crl` lists a certificate of `issuer`, for a reason that counts.

    The caller must have verified the certificate's path. `received_at` is the caller's own time of
    receipt (default: `now`), `captured_at` the time that the camera signed, if there is one. By the
    reason of the entry:

    * key_compromise: only what was received before the entry's invalidityDate is accepted. Without
      that date, nothing is.
    * superseded, cessation_of_operation: nobody else has the key. What was received, or captured,
      before the revocation is accepted, so that pictures in a queue stay valid.
    * certificate_hold: nothing is accepted for now (DeviceSuspendedError).
    * every other one, and none: nothing is accepted.

    Raises DeviceSuspendedError for a certificate on hold, RevocationUnknownError if the list is
    from another issuer or not valid at `now`, and ClientMisuseError for a time without a zone.
    """
    check_aware(now)
    received_at = now if received_at is None else received_at
    check_aware(received_at, "received_at")
    if issuer != crl.issuer and not _same_authority(issuer, crl.issuer):
        raise RevocationUnknownError(
            "The revocation list is from another CA than the device's issuer."
        )
    if crl.this_update > now + CLOCK_SKEW:
        raise RevocationUnknownError(
            "The revocation list is dated in the future. Check the clock of this machine."
        )
    if crl.next_update < now:
        raise RevocationUnknownError("The revocation list has expired. Fetch a newer one.")
    entry = crl.entries.get(certificate.serial_number)
    if entry is None or entry.is_good_for(received_at=received_at, captured_at=captured_at):
        return
    if entry.reason is x509.ReasonFlags.certificate_hold:
        raise DeviceSuspendedError("The device is suspended. Check again with a newer list.")
    raise DeviceRevokedError("The device's certificate is revoked.")


def check_aware(time: datetime, name: str = "now") -> None:
    """Raise ClientMisuseError if a time has no time zone, because it is then ambiguous."""
    if time.utcoffset() is None:
        raise ClientMisuseError(f"`{name}` has no time zone. Pass datetime.now(UTC), for example.")


def _check_issuer(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    if not same_name(crl.issuer, issuer.subject) or not _signed_by(crl, issuer):
        raise RevocationUnknownError(
            "The revocation list is from another CA than the device's issuer."
        )
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or not usage.crl_sign:  # RFC 5280, section 6.3.3, (f)
        raise RevocationUnknownError(
            "The issuer's certificate does not allow it to sign revocation lists (cRLSign)."
        )


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    return isinstance(crl.signature_hash_algorithm, _SOUND_HASHES) and crl.is_signature_valid(
        issuer.public_key()  # type: ignore[arg-type]  # any other kind is a TypeError
    )


def _same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Return True if two certificates are of the same CA: the same key and the same name."""
    return one.public_key() == other.public_key() and same_name(one.subject, other.subject)


def _number_of_complete(crl: x509.CertificateRevocationList) -> int:
    """Return the CRL number, after a check that the list is complete.

    Raises RevocationUnknownError for a partial list, an unknown critical extension or a missing
    number.
    """
    numbers = [each.value for each in crl.extensions if isinstance(each.value, x509.CRLNumber)]
    for extension in crl.extensions:
        if isinstance(extension.value, _PARTIAL):  # critical or not: sections 5.2.4 and 5.2.5
            raise RevocationUnknownError(
                "The revocation list is partial: it has only changes, or only some reasons or"
                " certificates. Fetch the complete list."
            )
        if extension.critical and not isinstance(extension.value, _KNOWN):
            raise RevocationUnknownError(
                "The revocation list has an unknown critical extension:"
                f" {extension.oid.dotted_string}."
            )
    if not numbers:
        raise RevocationUnknownError("The revocation list has no number (RFC 5280, section 5.2.3).")
    return numbers[0].crl_number


def _index(crl: x509.CertificateRevocationList) -> Mapping[int, RevocationEntry]:
    """Return the entries of a list by serial number.

    Raises RevocationUnknownError for an entry with an unknown critical extension or another issuer.
    """
    entries: dict[int, RevocationEntry] = {}
    for listed in crl:
        entry = _read_entry(listed)
        # A serial number that stands twice: nothing is accepted, whatever the two entries say.
        if entries.setdefault(listed.serial_number, entry) != entry:
            entries[listed.serial_number] = entry._replace(reason=x509.ReasonFlags.unspecified)
    return entries


def _read_entry(listed: x509.RevokedCertificate) -> RevocationEntry:
    reason, invalid_since = x509.ReasonFlags.unspecified, None
    for extension in listed.extensions:
        value = extension.value
        unknown = extension.critical and not isinstance(value, _KNOWN_OF_ENTRIES)
        if unknown or isinstance(value, x509.CertificateIssuer):
            # The extension may change which certificate the entry means: section 5.3.
            raise RevocationUnknownError(
                "An entry of the revocation list has an unknown critical extension:"
                f" {extension.oid.dotted_string}."
            )
        if isinstance(value, x509.CRLReason):
            reason = value.reason
        elif isinstance(value, x509.InvalidityDate):
            invalid_since = value.invalidity_date_utc
    return RevocationEntry(listed.revocation_date_utc, reason, invalid_since)
