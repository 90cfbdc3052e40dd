"""Register candidates as devices, or re-enrol devices, in one transaction for a batch.

Called by the writer of `provisioning.service` and by `provisioning.bulk`. UNIQUE constraints decide
every race: the candidate that loses must leave no change in the database.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices import uniqueness
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.idempotency.sealing import IDEMPOTENCY_PERIOD
from birthmark_sma.authority.key_tables import device_keys
from birthmark_sma.authority.provisioning import enrolment, re_enrolment
from birthmark_sma.authority.provisioning.idempotency import (
    StoredResponses,
    idempotency_storage_key,
)
from birthmark_sma.authority.provisioning.issuance import IssuedDevice, Provisioned
from birthmark_sma.authority.provisioning.replacement import refuse_key, refuse_recipient
from birthmark_sma.errors import (
    BirthmarkError,
    DeviceAlreadyProvisionedError,
    IssuerChangedError,
    KeyTablesRotatedError,
    NucHashInUseError,
    PublicKeyInUseError,
)
from birthmark_sma.pki.names import fold
from birthmark_sma.storage.clock import DatabaseClock

MOST_ATTEMPTS = 5
"""How often a device is made of which something is outdated before it is registered. Operators
replace intermediates and rotate key tables rarely, so the second time is enough."""
OUTDATED = (IssuerChangedError, KeyTablesRotatedError)
"""The errors of a candidate that must be made again."""


def register(
    transaction: Connection,
    candidates: Sequence[IssuedDevice],
    first_answers: StoredResponses,
    clock: DatabaseClock,
) -> list[Provisioned | BirthmarkError]:
    """Register a batch; return the outcome of each candidate, in their order.

    An outcome is the candidate's own response, the stored response of the first request with its
    Idempotency-Key, or an error, which says why it was not registered. An error of OUTDATED means
    that the candidate must be made again: another intermediate is active than the one that signed,
    or a key of its tables was replaced.
    """
    # Lock order: before all other locks, as a rotation of key tables takes it.
    device_store.hold_registrations(transaction)
    # The lock makes a succession of intermediates wait for this transaction, so no certificate is
    # registered under an intermediate that signs no more.
    active = ca_store.lock_active_intermediate(transaction)
    outdated: dict[str, Provisioned | BirthmarkError] = {
        c.provisioning_id: IssuerChangedError()
        for c in candidates
        if c.device.certificate_issuer != active
    }
    # Before the claims, so that an expired Idempotency-Key can be claimed again.
    idempotency_store.forget_before(transaction, clock.expired_before(IDEMPOTENCY_PERIOD))
    # Lock order: all processes insert in the order of the folded serials, which are unique. This
    # prevents a deadlock.
    ordered = sorted(
        (c for c in candidates if c.provisioning_id not in outdated),
        key=lambda candidate: fold(candidate.device.device_serial),
    )
    repeated = first_answers.claim(transaction, ordered)
    new = [c for c in ordered if c.provisioning_id not in repeated]
    errors = _refuse_recipients(transaction, new) | _refuse_replaced_keys(transaction, new)
    accepted = [c for c in new if c.provisioning_id not in errors]
    errors |= _add(transaction, [c for c in accepted if c.replaces is None])
    replacing = [c for c in accepted if c.replaces is not None]
    errors |= re_enrolment.replace_all(transaction, replacing)
    refused = [c for c in new if c.provisioning_id in errors]
    # Without this, a repeat would get a stored response for a device that does not exist.
    first_answers.release(transaction, refused)
    # A repeat of a request that was refused in this batch gets the same error.
    freed = {idempotency_storage_key(c.request): errors[c.provisioning_id] for c in refused}
    _record(transaction, [c for c in new if c.provisioning_id not in errors])
    outcomes: dict[str, Provisioned | BirthmarkError] = {c.provisioning_id: c.answer for c in new}
    outcomes |= errors | outdated
    for candidate in candidates:
        first = repeated.get(candidate.provisioning_id)
        if isinstance(first, Provisioned):
            outcomes[candidate.provisioning_id] = freed.get(
                idempotency_storage_key(candidate.request), first
            )
        elif first is not None:
            outcomes[candidate.provisioning_id] = first
    if any(c.provisioning_id not in errors for c in replacing):
        # No token with the NUC hash of before passes after the commit, in any process.
        device_store.await_verdicts(transaction)
    return [outcomes[c.provisioning_id] for c in candidates]


def _record(transaction: Connection, registered: Sequence[IssuedDevice]) -> None:
    """Record the devices that operators provisioned or re-enrolled: one act for each of the two."""
    acts: dict[tuple[Actor, ActKind], list[Subject]] = {}
    for each in registered:
        if each.request.actor is None:
            continue
        kind = ActKind.DEVICE_PROVISION
        before = None
        if each.replaces is not None:
            kind = ActKind.DEVICE_RE_ENROL
            before = {"certificate_serial": each.replaces}
        after = {
            "certificate_serial": each.device.certificate_serial,
            "device_family": each.device.device_family,
        }
        subject = Subject(each.device.device_serial, before, after)
        acts.setdefault((each.request.actor, kind), []).append(subject)
    for (actor, kind), subjects in acts.items():
        trail.record(transaction, actor, kind, subjects)


def _refuse_recipients(
    transaction: Connection, candidates: Sequence[IssuedDevice]
) -> dict[str, BirthmarkError]:
    """Return errors, by provisioning id, for recipient keys that are a device's signing key."""
    asked = {
        c.provisioning_id: c.recipient_fingerprint
        for c in candidates
        if c.recipient_fingerprint is not None
    }
    if not asked:
        return {}
    holders = uniqueness.find_key_holders(transaction, list(asked.values()))
    return {
        provisioning_id: refuse_recipient(holders[key])
        for provisioning_id, key in asked.items()
        if key in holders
    }


def _refuse_replaced_keys(
    transaction: Connection, candidates: Sequence[IssuedDevice]
) -> dict[str, BirthmarkError]:
    """Return errors, by provisioning id, for candidates whose table keys were rotated meanwhile."""
    given = {
        c.provisioning_id: (c.device.table_assignments, c.device.table_epochs) for c in candidates
    }
    replaced = device_keys.find_replaced(transaction, given)
    return {provisioning_id: KeyTablesRotatedError() for provisioning_id in replaced}


def _add(transaction: Connection, candidates: Sequence[IssuedDevice]) -> dict[str, BirthmarkError]:
    """Register devices as far as their access keys allow.

    Return the errors of the others, by provisioning id. A candidate with a conflict gives its use
    of the access key back, and the next round offers it to another candidate.
    """
    errors: dict[str, BirthmarkError] = {}
    waiting = candidates
    while waiting:
        unpermitted = enrolment.reserve(transaction, waiting)
        permitted = [c for c in waiting if c.provisioning_id not in unpermitted]
        added = set()
        if permitted:
            added = device_store.add_devices(transaction, [c.device for c in permitted])
        lost = [c for c in permitted if c.provisioning_id not in added]
        enrolment.give_back(transaction, lost)
        errors |= {c.provisioning_id: _make_conflict_error(transaction, c.device) for c in lost}
        if not lost:
            errors |= unpermitted
            break
        waiting = [c for c in waiting if c.provisioning_id in unpermitted]
    return errors


def _make_conflict_error(transaction: Connection, device: Device) -> BirthmarkError:
    conflict = find_conflict(
        transaction, device.device_serial, device.public_key_fingerprint, device.nuc_hash
    )
    # The only other UNIQUE columns are the certificate's serial number and the provisioning id.
    # Both are random, with at least 64 bits, so a collision is not expected.
    return conflict or DeviceAlreadyProvisionedError()


def find_conflict(
    connection: Connection, device_serial: str, fingerprint: bytes, nuc_hash: bytes
) -> BirthmarkError | None:
    """Return an error if the serial, public key or NUC hash is registered, else None.

    `nuc_hash` is the HMAC of the NUC hash. The error is a ConflictError, or a KeyRefusedError for
    the key of a revoked device, which must never be used again.
    """
    taken = uniqueness.find_conflicts(connection, device_serial, fingerprint, nuc_hash)
    if taken.device_serial:
        return DeviceAlreadyProvisionedError()
    if taken.public_key:
        holder = uniqueness.find_key_holders(connection, [fingerprint]).get(fingerprint)
        return PublicKeyInUseError() if holder is None else refuse_key(holder)
    if taken.nuc_hash:
        return NucHashInUseError()
    return None
