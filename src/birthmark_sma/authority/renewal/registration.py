"""Register renewals, in the transaction of a batch of the provisioning writer.

The lock on the device's row decides every race: of two renewals at once the second sees what the
first has done, and so does a revocation. Each candidate has a savepoint of its own, so one that is
refused leaves no change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import certificates_store, uniqueness
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.certificates_store import Revocation
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.key_tables import device_keys
from birthmark_sma.authority.provisioning.replacement import (
    refuse_key,
    refuse_recipient,
    replace_certificate,
)
from birthmark_sma.authority.renewal.rules import RegisteredCertificate, find_refusal
from birthmark_sma.errors import (
    BirthmarkError,
    IssuerChangedError,
    KeyRefusedError,
    KeyTablesRotatedError,
    PublicKeyInUseError,
    RenewalOutdatedError,
    RenewalRefusedError,
)
from birthmark_sma.pki.names import fold
from birthmark_sma.storage.portable_sql import database_time

REPLACED_BY = "renewal"
"""In `earlier_certificates.replaced_by`: no operator and no access key allowed the replacement."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The response to a renewal. The certificates are PEM.

    `sealed_secrets` is None without a recipient key. `is_repetition` is True if the device had got
    this certificate before.
    """

    device_certificate: str
    certificate_chain: tuple[str, ...]
    table_assignments: tuple[int, ...]
    renewed_at: datetime
    sealed_secrets: str | None = field(repr=False)
    is_repetition: bool = False


@dataclass(frozen=True, slots=True)
class IssuedRenewal:
    """A renewal whose proof was verified, with its response, before it is registered.

    `presented` is the serial number of the certificate that the device presented. `device` is the
    device with its new certificate; for a repetition (`is_new` is False) it has the certificate
    that it got before.
    """

    presented: str
    csr_sha256: bytes
    supersede: bool
    device: Device
    is_new: bool
    recipient_fingerprint: bytes | None
    table_epochs: tuple[int, ...] | None
    """The epochs of the table keys in the response; None if it has none."""
    answer: Renewed


def register_renewals(
    transaction: Connection, candidates: Sequence[IssuedRenewal], grace: timedelta
) -> list[Renewed | BirthmarkError]:
    """Register a batch of renewals; return the outcome of each, in their order.

    RenewalOutdatedError and the errors of OUTDATED mean that something came between: sign again.
    """
    # Lock order: before all other locks, as in the registration of new devices.
    device_store.hold_registrations(transaction)
    # As in the registration of new devices: this intermediate stays the active one until the end.
    active = ca_store.lock_active_intermediate(transaction)
    now = database_time(transaction)
    given = {
        str(place): (each.device.table_assignments, each.table_epochs)
        for place, each in enumerate(candidates)
        if each.table_epochs is not None
    }
    rotated = device_keys.find_replaced(transaction, given)
    has_revoked = False
    outcomes: dict[int, Renewed | BirthmarkError] = {}
    # Lock order: that of the registration of new devices, which prevents a deadlock.
    for place, candidate in sorted(
        enumerate(candidates), key=lambda each: fold(each[1].device.device_serial)
    ):
        savepoint = transaction.begin_nested()
        try:
            outcome = (
                KeyTablesRotatedError()
                if str(place) in rotated
                else _renew(transaction, candidate, active, now, grace)
            )
        except IntegrityError:  # another device has just registered this key
            outcome = PublicKeyInUseError()
        if isinstance(outcome, BirthmarkError):
            savepoint.rollback()
        else:
            savepoint.commit()
            if candidate.supersede:
                # At once: another candidate of this batch may present one of these certificates.
                serial = candidate.device.device_serial
                has_revoked |= certificates_store.supersede_earlier(transaction, serial, now)
        outcomes[place] = outcome
    # A repetition revokes only what the first request left valid. Thus a device that repeats itself
    # causes no new CRLs.
    if has_revoked:
        crl_store.raise_generation(transaction)
    return [outcomes[place] for place in range(len(candidates))]


def _renew(
    transaction: Connection,
    candidate: IssuedRenewal,
    active: str | None,
    now: datetime,
    grace: timedelta,
) -> Renewed | BirthmarkError:
    """Register a renewal, unless its device has this certificate already. Revoke nothing."""
    found = find_certificate(transaction, candidate.presented, lock=candidate.device.device_serial)
    if found is None:
        return RenewalRefusedError("This certificate is not registered any more.")
    refusal = find_refusal(found, candidate.csr_sha256, now, grace) or find_key_refusal(
        transaction,
        found.device.device_serial,
        candidate.device.public_key_fingerprint,
        candidate.recipient_fingerprint,
    )
    if refusal is not None:
        return refusal
    is_answered = found.device.certificate_serial == candidate.device.certificate_serial
    if found.is_exchanged(candidate.csr_sha256) and is_answered:
        # The response has the newest keys, whatever those of the first response were.
        epochs = candidate.table_epochs
        if epochs is not None and epochs != found.device.table_epochs:
            device_store.set_table_epochs(transaction, found.device.device_serial, epochs)
        return replace(candidate.answer, is_repetition=True)
    # The device was renewed in another way since, or an equal request was registered first.
    if not candidate.is_new or found.is_exchanged(candidate.csr_sha256):
        return RenewalOutdatedError()
    if candidate.device.certificate_issuer != active:
        return IssuerChangedError()
    return _exchange(transaction, candidate, found.device, now)


def _exchange(
    transaction: Connection, candidate: IssuedRenewal, old: Device, now: datetime
) -> Renewed | BirthmarkError:
    changes = {name: getattr(candidate.device, name) for name in _NEW_FIELDS}
    # By the database's clock to the instant, as a renewal order names what was issued before it.
    epochs = old.table_epochs if candidate.table_epochs is None else candidate.table_epochs
    new = replace(old, **changes, certificate_renewed_at=now, table_epochs=epochs)
    error = replace_certificate(transaction, old, new, now=now, replaced_by=REPLACED_BY)
    if error is not None:
        return error
    certificates_store.note_exchange(
        transaction, candidate.presented, candidate.csr_sha256, new.certificate_serial
    )
    return replace(candidate.answer, renewed_at=now)


_NEW_FIELDS = (
    *("device_certificate", "certificate_serial", "device_public_key", "public_key_fingerprint"),
    *("certificate_issuer", "certificate_expires_at"),
)


def find_current(connection: Connection, device: Device) -> RegisteredCertificate:
    """Return the current certificate of a device."""
    revoked = ca_store.find_revocation(connection, device.certificate_serial)
    revocation = (
        None
        if revoked is None
        else Revocation(revoked.revoked_at, revoked.revocation_reason, revoked.invalid_since)
    )
    expires_at = device.certificate_expires_at or _read_end(device.device_certificate)
    return RegisteredCertificate(device, None, revocation, expires_at)


def find_certificate(
    connection: Connection, certificate_serial: str, *, lock: str | None = None
) -> RegisteredCertificate | None:
    """Return a device certificate, current or earlier, with its device; None if it is unknown.

    With `lock`, the serial of the device, its row is locked, and only its certificates are found.
    """
    if lock is None:
        device = device_store.find_device_by_certificate(connection, certificate_serial)
    else:
        device = device_store.lock_device(connection, lock)
    if device is not None and device.certificate_serial == certificate_serial:
        return find_current(connection, device)
    listed = certificates_store.find_earlier(connection, certificate_serial)
    if listed is None:
        return None
    earlier = listed.certificate
    if lock is None:
        device = device_store.find_device(connection, earlier.device_serial)
    if device is None or device.device_serial != earlier.device_serial:
        return None
    return RegisteredCertificate(device, earlier, listed.revocation, earlier.certificate_expires_at)


def find_key_refusal(
    connection: Connection,
    device_serial: str,
    fingerprint: bytes,
    recipient_fingerprint: bytes | None,
) -> BirthmarkError | None:
    """Return an error if the device must not get a certificate for this key, else None.

    It may keep its key, or take back one whose certificate is still valid. Fingerprints are those
    of the new signing key and of the recipient key.
    """
    asked = [each for each in (fingerprint, recipient_fingerprint) if each is not None]
    holders = uniqueness.find_key_holders(connection, asked)
    holder = holders.get(fingerprint)
    if holder is not None and holder.device_serial != device_serial:
        return refuse_key(holder)
    if (
        holder is not None
        and not holder.is_current
        and certificates_store.has_revoked_key(connection, device_serial, fingerprint)
    ):
        return KeyRefusedError(
            "This key belongs to a certificate of this device that was revoked: make a new key"
            " pair."
        )
    if recipient_fingerprint is not None and recipient_fingerprint in holders:
        return refuse_recipient(holders[recipient_fingerprint])
    return None


def _read_end(pem: str) -> datetime | None:
    """Return the end of a certificate, or None for what an operator's own SQL put there."""
    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError:
        return None
