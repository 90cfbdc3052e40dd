"""The rules of renewal: which certificate of which device may be exchanged.

`renewal.service` asks before a signature, `renewal.registration` in the transaction that decides.
All times are of the database's clock. This module must never read a clock or the database itself.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from birthmark_sma.authority.devices.certificates_store import EarlierCertificate, Revocation
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import BirthmarkError, DeviceNotActiveError, RenewalRefusedError
from birthmark_sma.protocol.verdict import DeviceStatus

SUPERSEDED = "superseded"
_RE_ENROL = "Ask the operator for a re-enrolment: sma devices re-enrol SERIAL."


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


def find_refusal(
    certificate: RegisteredCertificate, csr_sha256: bytes, now: datetime, grace: timedelta
) -> BirthmarkError | None:
    """Return an error if this certificate cannot be renewed with this CSR at `now`, else None.

    Tell it only to a caller that has proved to have the key of the certificate: it reveals the
    state of the device.
    """
    status = certificate.device.status
    if status is not DeviceStatus.ACTIVE:
        return DeviceNotActiveError(
            f"This device is {status.value}, so its certificate cannot be renewed. Its operator"
            " can tell why."
        )
    revocation = certificate.revocation
    is_repetition = certificate.is_exchanged(csr_sha256)
    if revocation is not None and not (
        is_repetition and revocation.revocation_reason == SUPERSEDED
    ):
        return RenewalRefusedError(
            f"This certificate was revoked ({revocation.revocation_reason}). Renew with the newest"
            f" certificate of this device. {_RE_ENROL}"
        )
    if certificate.expires_at is None or certificate.expires_at + grace <= now:
        return RenewalRefusedError(
            f"This certificate expired more than {grace.days} days ago. {_RE_ENROL}"
        )
    return None
