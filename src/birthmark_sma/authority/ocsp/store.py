"""SQL for the OCSP responder: look up certificates by serial number, many in one query.

`responder` calls it through the server's threads. It must never report a certificate as good that
the register does not have as the certificate of an active device.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from birthmark_sma.pki.ocsp.responses import CERTIFICATE_HOLD, REASONS, CertificateStatus, Status
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.portable_sql import is_any_of
from birthmark_sma.storage.schema import registered_devices, revoked_certificates

GOOD = CertificateStatus(Status.GOOD)
_UNSPECIFIED = "unspecified"


@dataclass(frozen=True, slots=True)
class FoundCertificate:
    """The status of a certificate, and its PEM; None if it was revoked and is not registered."""

    status: CertificateStatus
    certificate: str | None = None


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
    devices, revoked = registered_devices.c, revoked_certificates.c
    found = {}
    rows = connection.execute(
        select(
            devices.certificate_serial,
            devices.status,
            devices.provisioned_at,
            devices.device_certificate,
        ).where(is_any_of(connection, devices.certificate_serial, serials))
    )
    for serial, status, since, pem in rows:
        found[serial] = FoundCertificate(_status_of(status, since), pem)
    # After the devices: a certificate that is revoked between the two queries is revoked.
    revocations = connection.execute(
        select(revoked.certificate_serial, revoked.revoked_at, revoked.revocation_reason).where(
            is_any_of(connection, revoked.certificate_serial, serials)
        )
    )
    for serial, revoked_at, reason in revocations:
        known = reason if reason in REASONS else _UNSPECIFIED
        told = CertificateStatus(Status.REVOKED, revoked_at, known)
        device = found.get(serial)
        found[serial] = FoundCertificate(told, None if device is None else device.certificate)
    return found


def _status_of(status: str, since: datetime) -> CertificateStatus:
    """Return the status of a registered certificate that is not in the table of revocations.

    The register has no time of a suspension. All tokens of a suspended device fail, so its
    certificate is on hold from the beginning. The same counts for a device that an operator's own
    SQL has marked as revoked.
    """
    if status == DeviceStatus.ACTIVE:
        return GOOD
    held = status == DeviceStatus.SUSPENDED
    return CertificateStatus(Status.REVOKED, since, CERTIFICATE_HOLD if held else _UNSPECIFIED)
