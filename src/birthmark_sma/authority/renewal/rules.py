"""The rules of renewal: which certificate of which device may be exchanged.

`renewal.service` asks before a signature, `renewal.registration` in the transaction that decides.
The dashboard shows what stands in the way. All times are of the database's clock. This module must
never read a clock or the database itself.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from birthmark_sma.authority.devices.certificates_store import EarlierCertificate, Revocation
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import BirthmarkError, DeviceNotActiveError, RenewalRefusedError
from birthmark_sma.protocol.verdict import DeviceStatus

SUPERSEDED = "superseded"
_RE_ENROL = "Ask the operator for a re-enrolment: sma devices re-enrol SERIAL."


class Obstacle(StrEnum):
    """An obstacle to a renewal."""

    STATUS = "status"
    """The device is not active."""
    REVOCATION = "revocation"
    """The certificate is revoked."""
    EXPIRY = "expiry"
    """The certificate expired longer ago than the grace period."""


@dataclass(frozen=True, slots=True)
class RegisteredCertificate:
    """A device, and one of its certificates. `earlier` is None for the current one.

    `expires_at` is None only for a certificate that an operator inserted and that cannot be read.
    """

    device: Device
    earlier: EarlierCertificate | None
    revocation: Revocation | None
    expires_at: datetime | None

    @property
    def key_fingerprint(self) -> bytes:
        """Return the SHA-256 of the DER SubjectPublicKeyInfo."""
        known = self.device if self.earlier is None else self.earlier
        return known.public_key_fingerprint

    def is_exchanged(self, csr_sha256: bytes) -> bool:
        """Return True if the device got its current certificate for this one and this CSR."""
        earlier = self.earlier
        return (
            earlier is not None
            and earlier.csr_sha256 == csr_sha256
            and earlier.exchanged_for == self.device.certificate_serial
        )


def find_obstacle(
    certificate: RegisteredCertificate,
    now: datetime,
    grace: timedelta,
    *,
    is_repetition: bool = False,
) -> Obstacle | None:
    """Return what stands in the way of a renewal of this certificate at `now`, or None.

    A repetition asks for the certificate that was exchanged for this one.
    """
    if certificate.device.status is not DeviceStatus.ACTIVE:
        return Obstacle.STATUS
    revocation = certificate.revocation
    if revocation is not None and not (
        is_repetition and revocation.revocation_reason == SUPERSEDED
    ):
        return Obstacle.REVOCATION
    if certificate.expires_at is None or certificate.expires_at + grace <= now:
        return Obstacle.EXPIRY
    return None


def find_refusal(
    certificate: RegisteredCertificate, csr_sha256: bytes, now: datetime, grace: timedelta
) -> BirthmarkError | None:
    """Return an error if this certificate cannot be renewed with this CSR at `now`, else None.

    Tell it only to a caller that has proved to have the key of the certificate: it reveals the
    state of the device.
    """
    obstacle = find_obstacle(
        certificate, now, grace, is_repetition=certificate.is_exchanged(csr_sha256)
    )
    if obstacle is Obstacle.STATUS:
        return DeviceNotActiveError(
            f"This device is {certificate.device.status.value}, so its certificate cannot be"
            " renewed. Its operator can tell why."
        )
    if obstacle is Obstacle.REVOCATION and certificate.revocation is not None:
        return RenewalRefusedError(
            f"This certificate was revoked ({certificate.revocation.revocation_reason}). Renew with"
            f" the newest certificate of this device. {_RE_ENROL}"
        )
    if obstacle is Obstacle.EXPIRY:
        return RenewalRefusedError(
            f"This certificate expired more than {grace.days} days ago. {_RE_ENROL}"
        )
    return None
