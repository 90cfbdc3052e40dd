"""Replace the certificate of a device, in the transaction of a batch.

Called by `provisioning.re_enrolment` and `renewal.registration`. The caller has locked the device's
row and decides if the device may have a new certificate. The old certificate is kept as an earlier
one: a key must never be certified for two devices, not even one after the other.
"""

from datetime import datetime

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.authority.devices import certificates_store, uniqueness
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.certificates_store import EarlierCertificate
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.devices.uniqueness import KeyHolder
from birthmark_sma.errors import (
    BirthmarkError,
    KeyEncryptionKeyRefusedError,
    KeyRefusedError,
    PublicKeyInUseError,
)
from birthmark_sma.protocol.verdict import DeviceStatus

_KEY_OF_REVOKED = "This key belongs to a device that was revoked: make a new key pair."


def replace_certificate(
    transaction: Connection,
    old: Device,
    new: Device,
    *,
    now: datetime,
    replaced_by: str,
) -> BirthmarkError | None:
    """Make `new` the identity of the device `old`. Return an error if its key is another device's.

    The old certificate stays valid to its end, unless the caller revokes it in this transaction
    (`certificates_store.supersede_earlier`). Run it in a savepoint, and roll that back after an
    error. Raises sqlalchemy.exc.IntegrityError if another device has the key or the NUC hash.
    """
    certificates_store.add_earlier(transaction, _as_earlier(old, now, replaced_by))
    device_store.replace_identity(transaction, new)
    # After the UPDATE, which waits for another device that gives up this key in the same moment.
    if uniqueness.had_key(transaction, new.public_key_fingerprint, other_than=new.device_serial):
        return PublicKeyInUseError()
    return None


def refuse_key(holder: KeyHolder) -> BirthmarkError:
    """Return the error for a signing key that belongs to another device, now or earlier."""
    if holder.status is DeviceStatus.REVOKED:
        return KeyRefusedError(_KEY_OF_REVOKED)
    return PublicKeyInUseError()


def refuse_recipient(holder: KeyHolder) -> BirthmarkError:
    """Return the error for a recipient key with which a device signs."""
    return KeyEncryptionKeyRefusedError(
        _KEY_OF_REVOKED
        if holder.status is DeviceStatus.REVOKED
        else "A device signs with this key: make a key pair that nothing else uses."
    )


def _as_earlier(device: Device, now: datetime, replaced_by: str) -> EarlierCertificate:
    return EarlierCertificate(
        certificate_serial=device.certificate_serial,
        device_serial=device.device_serial,
        certificate_issuer=device.certificate_issuer,
        public_key_fingerprint=device.public_key_fingerprint,
        not_before=read_not_before(device.device_certificate),
        certificate_expires_at=device.certificate_expires_at,
        replaced_at=now,
        replaced_by=replaced_by,
    )


def read_not_before(pem: str) -> datetime | None:
    """Return the notBefore of a certificate, or None for what an operator's SQL put there."""
    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_before_utc
    except ValueError:
        return None
