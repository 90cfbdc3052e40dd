"""Re-enrol a device: a new key, certificate and NUC hash under the serial that it has.

Called by `provisioning.service` before a signature and by `provisioning.registration` in the
transaction of a batch. A device may be re-enrolled if the operator has allowed it
(`devices.re_enrolments`) or the request's access key has the right to. The old certificate is
revoked as `superseded` in the same transaction, so that no moment has two valid identities, or
none. A request of bulk provisioning must never re-enrol a device.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.devices import certificates_store, re_enrolments, uniqueness
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.provisioning import enrolment
from birthmark_sma.authority.provisioning.issuance import (
    CheckedRequest,
    IssuedDevice,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.replacement import refuse_key, replace_certificate
from birthmark_sma.errors import (
    BirthmarkError,
    CsrRefusedError,
    DeviceAlreadyProvisionedError,
    DeviceDescriptionRefusedError,
    KeyRefusedError,
    NucHashInUseError,
    PublicKeyInUseError,
    ReEnrolmentRefusedError,
)
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import database_time


def find_replaced(connection: Connection, checked: CheckedRequest) -> Device | BirthmarkError:
    """Return the device that a request for a registered serial may re-enrol, or an error.

    A caller without permission learns only that the serial is registered. This reads before a
    signature; `replace_all` decides.
    """
    found = device_store.find_devices_named(connection, checked.request.device_serial)
    if len(found) != 1:  # older devices may share a folded serial
        return DeviceAlreadyProvisionedError()
    [device] = found
    if not _is_allowed(connection, checked.request, device):
        return DeviceAlreadyProvisionedError()
    return (
        _refuse_status(device)
        or _refuse_request(checked.request, device)
        or _find_conflict(
            connection,
            device.device_serial,
            checked.public_key_fingerprint,
            checked.nuc_hash_index,
        )
        or device
    )


def replace_all(
    transaction: Connection, candidates: Sequence[IssuedDevice]
) -> dict[str, BirthmarkError]:
    """Re-enrol devices; return the errors of those that could not be, by provisioning id.

    A candidate that is refused leaves no change. All have `replaces` set.
    """
    if not candidates:
        return {}
    now = database_time(transaction)
    errors: dict[str, BirthmarkError] = dict(enrolment.reserve(transaction, candidates))
    lost = []
    for candidate in candidates:
        if candidate.provisioning_id in errors:
            continue
        # A savepoint for each: UPDATE cannot skip a row that violates a UNIQUE constraint, as
        # INSERT can.
        savepoint = transaction.begin_nested()
        try:
            error = _replace(transaction, candidate, now)
            if error is None:
                savepoint.commit()
                continue
            savepoint.rollback()
        except IntegrityError:  # another device has just registered this key or this NUC hash
            savepoint.rollback()
            error = _find_conflict(transaction, *_unique(candidate.device)) or PublicKeyInUseError()
        errors[candidate.provisioning_id] = error
        lost.append(candidate)
    enrolment.give_back(transaction, lost)
    if len(errors) < len(candidates):
        crl_store.raise_generation(transaction)
    return errors


def _replace(
    transaction: Connection, candidate: IssuedDevice, now: datetime
) -> BirthmarkError | None:
    """Replace the certificate of a device, or return the reason why not."""
    new = candidate.device
    old = device_store.lock_device(transaction, new.device_serial)
    # Compare and set: of two requests that replace the same certificate, one wins.
    if old is None or old.certificate_serial != candidate.replaces:
        return DeviceAlreadyProvisionedError()
    # Used up also if the access key has the right: otherwise somebody else could use it later.
    permission = re_enrolments.use(transaction, old.device_serial, now)
    key = _find_right(candidate.request, old)
    if permission is not None:
        allowed_by = permission.actor
    elif key is not None:
        allowed_by = f"key {key.key_id}"
    else:
        return DeviceAlreadyProvisionedError()
    refusal = _refuse_status(old) or _find_conflict(transaction, *_unique(new))
    if refusal is not None:
        return refusal
    # All earlier certificates: a lost key of one that a renewal left valid must not renew it.
    error = replace_certificate(transaction, old, new, now=now, replaced_by=allowed_by)
    if error is None:
        certificates_store.supersede_earlier(transaction, old.device_serial, now)
    return error


def _is_allowed(connection: Connection, request: ProvisioningRequest, device: Device) -> bool:
    key = request.enrolled_with
    if key is not None and key.device_family not in {None, device.device_family}:
        return False  # nor does the caller learn the family
    if _find_right(request, device) is not None:
        return True
    now = database_time(connection)
    return re_enrolments.find(connection, device.device_serial, now) is not None


def _find_right(request: ProvisioningRequest, device: Device) -> AccessKey | None:
    """Return the access key of the request if it may re-enrol the device, else None."""
    key = request.enrolled_with
    if key is None or not key.may_re_enrol or key.device_family not in {None, device.device_family}:
        return None
    return key


def _refuse_status(device: Device) -> BirthmarkError | None:
    if device.status is DeviceStatus.ACTIVE:
        return None
    return ReEnrolmentRefusedError(
        f"This device is {device.status.value}, and only an active device can be re-enrolled."
        f" {re_enrolments.advise(device.status)}"
    )


def _refuse_request(request: ProvisioningRequest, device: Device) -> BirthmarkError | None:
    if request.device_serial != device.device_serial:
        return ReEnrolmentRefusedError(
            f"This device is registered as {device.device_serial!r}. Send its serial as it is"
            " spelled there."
        )
    if request.csr is None:
        return CsrRefusedError(
            "This serial is registered. To re-enrol it, send a csr in place of"
            " device_public_key: it proves that the device has the new private key."
        )
    if request.device_family != device.device_family:
        return DeviceDescriptionRefusedError(
            "This device is registered under another device_family. A re-enrolment cannot change"
            " it."
        )
    return None


def _unique(device: Device) -> tuple[str, bytes, bytes]:
    return device.device_serial, device.public_key_fingerprint, device.nuc_hash


def _find_conflict(
    connection: Connection, device_serial: str, fingerprint: bytes, nuc_hash: bytes
) -> BirthmarkError | None:
    """Return an error if the key or the NUC hash belongs to another device, else None.

    A device may bring its current key and its own NUC hash again: its sensor is the same.
    """
    holder = uniqueness.find_key_holders(connection, [fingerprint]).get(fingerprint)
    if holder is not None and holder.device_serial != device_serial:
        return refuse_key(holder)
    if holder is not None and not holder.is_current:
        return KeyRefusedError(
            "This key was replaced at an earlier re-enrolment of this device: make a new key pair."
        )
    if uniqueness.has_nuc_hash(connection, nuc_hash, other_than=device_serial):
        return NucHashInUseError()
    return None
