"""SQL for the OCSP responder: look up certificates by serial number, many in one query.

`responder` calls it through the server's threads. It must never report a certificate as good that
the register does not have as the certificate of an active device.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from birthmark_sma.authority.devices import certificates_store
from birthmark_sma.authority.devices.certificates_store import KnownCertificate, Revocation
from birthmark_sma.pki.ocsp.responses import CERTIFICATE_HOLD, REASONS, CertificateStatus, Status
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.portable_sql import is_any_of
from birthmark_sma.storage.schema.certificates import revoked_certificates

GOOD = CertificateStatus(Status.GOOD)
_UNSPECIFIED = "unspecified"


@dataclass(frozen=True, slots=True)
class FoundCertificate:
    """The status of a certificate, and the name of its issuer in `ca_certificates`."""

    status: CertificateStatus
    issuer: str


def find_certificates(
    database: Database, serial_numbers: Collection[int]
) -> Mapping[int, FoundCertificate]:
    """Return the certificates that are registered or revoked, by serial number.

    A connection that was lost while it lay in the pool is replaced. Raises
    DatabaseUnavailableError.
    """
    serials = [f"{number:x}" for number in serial_numbers]

    def find() -> dict[str, FoundCertificate]:
        with database.read() as connection:
            return _find(connection, serials)

    return {int(serial, 16): each for serial, each in retry(find).items()}


def _find(connection: Connection, serials: Sequence[str]) -> dict[str, FoundCertificate]:
    found = {
        serial: FoundCertificate(_status_of(each), each.certificate_issuer)
        for serial, each in certificates_store.find_certificates(connection, serials).items()
    }
    unknown = [serial for serial in serials if serial not in found]
    if unknown:
        revoked = revoked_certificates.c
        rows = connection.execute(
            select(
                revoked.certificate_serial,
                revoked.certificate_issuer,
                revoked.revoked_at,
                revoked.revocation_reason,
                revoked.invalid_since,
            ).where(is_any_of(connection, revoked.certificate_serial, unknown))
        )
        for serial, issuer, *revocation in rows:
            found[serial] = FoundCertificate(_revoked(Revocation(*revocation)), issuer)
    return found


def _status_of(known: KnownCertificate) -> CertificateStatus:
    if known.revocation is not None:
        return _revoked(known.revocation)
    if known.status is DeviceStatus.ACTIVE:
        return GOOD
    # An operator's own SQL has changed the status without the revocation.
    held = known.status is DeviceStatus.SUSPENDED
    reason = CERTIFICATE_HOLD if held else _UNSPECIFIED
    return CertificateStatus(Status.REVOKED, known.status_since, reason)


def _revoked(revocation: Revocation) -> CertificateStatus:
    reason = revocation.revocation_reason
    known = reason if reason in REASONS else _UNSPECIFIED
    return CertificateStatus(Status.REVOKED, revocation.revoked_at, known, revocation.invalid_since)
