"""Take a device out: suspend it for a while, or revoke it for good."""

from datetime import datetime

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.errors import DeviceStatusError, UnknownDeviceError
from birthmark_sma.pki import crl
from birthmark_sma.pki.crl import REASONS, RevokedCertificate
from birthmark_sma.pki.signer import Signer
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage import certificates, devices, flags
from birthmark_sma.storage.certificates import Revocation
from birthmark_sma.storage.devices import Device
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database


def suspend_device(database: Database, device_serial: str) -> None:
    """Make a device's tokens FAIL until it is reinstated.

    Raises UnknownDeviceError, or DeviceStatusError unless it is active.
    """
    with database.write() as transaction:
        _change(transaction, device_serial, DeviceStatus.ACTIVE, DeviceStatus.SUSPENDED)


def reinstate_device(database: Database, device_serial: str) -> None:
    """End a suspension, and put the device's flags aside: whoever does this has looked at them.

    Raises UnknownDeviceError, or DeviceStatusError unless suspended.
    """
    with database.write() as transaction:
        _change(transaction, device_serial, DeviceStatus.SUSPENDED, DeviceStatus.ACTIVE)
        flags.set_reviewed(transaction, device_serial, database_time(transaction))


def revoke_device(database: Database, device_serial: str, reason: str) -> None:
    """Make a device's tokens FAIL for ever, and put its certificate on the next CRL.

    `reason` is a key of `pki.crl.REASONS`. Raises UnknownDeviceError, or DeviceStatusError where
    it is revoked already or the reason is unknown.
    """
    if reason not in REASONS:
        raise DeviceStatusError(f"{reason} is no reason. Give one of: {', '.join(REASONS)}")
    with database.write() as transaction:
        device = _find(transaction, device_serial)
        _change(transaction, device_serial, device.status, DeviceStatus.REVOKED)
        certificates.add_revocation(
            transaction,
            Revocation(
                device.certificate_serial, device_serial, database_time(transaction), reason
            ),
        )


def crl_as_of(database: Database, issuer: x509.Certificate, signer: Signer, now: datetime) -> bytes:
    """Sign the list of all certificates revoked so far as if it were that time: for a sandbox.

    It is stored nowhere; `authority.crl_publication` makes the lists that are served.
    """
    with database.read() as connection:
        revoked = certificates.list_revocations(connection)
    return crl.sign_crl(
        [
            RevokedCertificate(int(r.certificate_serial, 16), r.revoked_at, r.revocation_reason)
            for r in revoked
        ],
        issuer=issuer,
        signer=signer,
        number=int(now.timestamp() * 1_000),
        this_update=now,
        next_update=now + crl.LIFETIME,
    )


def _change(
    transaction: Connection, device_serial: str, old: DeviceStatus, new: DeviceStatus
) -> None:
    device = _find(transaction, device_serial)
    if (
        device.status is not old
        or old is new
        or not devices.set_status(transaction, device_serial, old=old, new=new)
    ):
        raise DeviceStatusError(
            f"{device_serial} is {device.status.value}, so it cannot become {new.value}."
        )


def _find(transaction: Connection, device_serial: str) -> Device:
    device = devices.find_device(transaction, device_serial)
    if device is None:
        raise UnknownDeviceError(f"No device {device_serial} is registered.")
    return device
