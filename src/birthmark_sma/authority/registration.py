"""Register candidates: the transaction in which they become devices, or learn why not.

UNIQUE constraints decide races; whoever loses has changed nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from birthmark_sma.authority.candidates import Candidate, Provisioned
from birthmark_sma.authority.first_answers import IDEMPOTENCY_PERIOD, FirstAnswers
from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DeviceAlreadyProvisionedError,
    NucHashInUseError,
    PublicKeyInUseError,
)
from birthmark_sma.storage import devices, idempotency
from birthmark_sma.storage.devices import Device


def register(
    transaction: Connection, candidates: Sequence[Candidate], first_answers: FirstAnswers
) -> list[Provisioned | BirthmarkError]:
    """Register a batch. Each candidate gets its answer, its first answer, or its conflict."""
    idempotency.forget_before(transaction, datetime.now(UTC) - IDEMPOTENCY_PERIOD)
    # All programs take the same order, so that two of them do not wait for each other.
    ordered = sorted(candidates, key=lambda candidate: candidate.device.device_serial)
    repeated = first_answers.claim(transaction, ordered)
    new = [c for c in ordered if c.provisioning_id not in repeated]
    added = devices.add_devices(transaction, [c.device for c in new]) if new else set()
    refused = [c for c in new if c.provisioning_id not in added]
    first_answers.release(transaction, refused)
    # Who repeats a request that was refused in this very batch is refused as well.
    freed = {key for c in refused if (key := c.request.idempotency_key) is not None}
    refused += [
        c
        for c in ordered
        if isinstance(repeated.get(c.provisioning_id), Provisioned)
        and c.request.idempotency_key in freed
    ]
    outcomes: dict[str, Provisioned | BirthmarkError] = dict(repeated)
    outcomes |= {c.provisioning_id: c.answer for c in new}
    outcomes |= {c.provisioning_id: _loser(transaction, c.device) for c in refused}
    return [outcomes[c.provisioning_id] for c in candidates]


def _loser(transaction: Connection, device: Device) -> ConflictError:
    conflict = find_conflict(
        transaction, device.device_serial, device.public_key_fingerprint, device.nuc_hash
    )
    # Serial and provisioning id are the only other UNIQUE columns, and both are 64 random bits.
    return conflict or DeviceAlreadyProvisionedError()


def find_conflict(
    connection: Connection, device_serial: str, fingerprint: bytes, nuc_hash: bytes
) -> ConflictError | None:
    """Say what about a device is registered already, if anything."""
    taken = devices.find_taken(connection, device_serial, fingerprint, nuc_hash)
    if taken.device_serial:
        return DeviceAlreadyProvisionedError()
    if taken.public_key:
        return PublicKeyInUseError()
    if taken.nuc_hash:
        return NucHashInUseError()
    return None
