"""Register renewals, in the transaction of a batch of the provisioning writer.

The lock on the device's row decides every race: of two renewals at once the second sees what the
first has done, and so does a revocation. Each candidate has a savepoint of its own, so one that is
refused leaves no change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import certificates_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.certificates_store import RevokedAt
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.provisioning.replacement import (
    refuse_key,
    refuse_recipient,
    replace_certificate,
)
from birthmark_sma.authority.renewal.rules import RegisteredCertificate, find_refusal
from birthmark_sma.errors import (
    BirthmarkError,
    KeyRefusedError,
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
    that it got before. `make_answer` makes the response again for another certificate.
    """

    presented: str
    csr_sha256: bytes
    supersede: bool
    device: Device
    is_new: bool
    recipient_fingerprint: bytes | None
    answer: Renewed
    make_answer: Callable[[Device], Renewed] = field(repr=False)


def register_renewals(
    transaction: Connection, candidates: Sequence[IssuedRenewal], grace: timedelta
) -> list[Renewed | BirthmarkError]:
    """Register a batch of renewals; return the outcome of each, in their order."""
    now = database_time(transaction)
    outcomes: dict[int, Renewed | BirthmarkError] = {}
    # Lock order: that of the registration of new devices, which prevents a deadlock.
    for place, candidate in sorted(
        enumerate(candidates), key=lambda each: fold(each[1].device.device_serial)
    ):
        savepoint = transaction.begin_nested()
        try:
            outcome = _renew(transaction, candidate, now, grace)
        except IntegrityError:  # another device has just registered this key
            outcome = PublicKeyInUseError()
        if isinstance(outcome, BirthmarkError):
            savepoint.rollback()
        else:
            savepoint.commit()
        outcomes[place] = outcome
    return [outcomes[place] for place in range(len(candidates))]


def _renew(
    transaction: Connection, candidate: IssuedRenewal, now: datetime, grace: timedelta
) -> Renewed | BirthmarkError:
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
    old = found.device
    if found.is_exchanged(candidate.csr_sha256):
        if candidate.supersede:
            certificates_store.supersede_earlier(transaction, old.device_serial, now)
        is_same = old.certificate_serial == candidate.device.certificate_serial
        answer = candidate.answer if is_same else candidate.make_answer(old)
        return replace(answer, is_repetition=True)
    if not candidate.is_new:
        return RenewalOutdatedError()
    new = replace(old, **{name: getattr(candidate.device, name) for name in RENEWED_FIELDS})
    error = replace_certificate(
        *(transaction, old, new),
        now=now,
        replaced_by=REPLACED_BY,
        supersede=candidate.supersede,
    )
    if error is not None:
        return error
    certificates_store.note_exchange(
        transaction, candidate.presented, candidate.csr_sha256, new.certificate_serial
    )
    return candidate.answer


RENEWED_FIELDS = (
    *("device_certificate", "certificate_serial", "device_public_key", "public_key_fingerprint"),
    *("certificate_issuer", "certificate_expires_at", "certificate_renewed_at"),
)
"""The fields of a device that a renewal changes."""


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
        revoked = ca_store.find_revocation(connection, certificate_serial)
        revocation = (
            None if revoked is None else RevokedAt(revoked.revoked_at, revoked.revocation_reason)
        )
        expires_at = device.certificate_expires_at or _read_end(device.device_certificate)
        return RegisteredCertificate(device, None, revocation, expires_at)
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
    holders = device_store.find_key_holders(connection, asked)
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
