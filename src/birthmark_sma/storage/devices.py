"""Registered devices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, func, select, update

from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.dialects import insert_or_add, insert_or_skip
from birthmark_sma.storage.schema import device_family_counters
from birthmark_sma.storage.schema import registered_devices as devices


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device. `nuc_hash` is the HMAC of the NUC hash, never the hash itself.

    Certificate and public key are PEM, the certificate's serial number is lower-case hex, and
    `public_key_fingerprint` is the SHA-256 of the DER SubjectPublicKeyInfo.
    """

    device_serial: str
    nuc_hash: bytes
    table_assignments: tuple[int, ...]
    device_certificate: str
    certificate_serial: str
    device_public_key: str
    public_key_fingerprint: bytes
    device_family: str
    app_version: str | None
    status: DeviceStatus
    provisioning_id: str
    provisioned_at: datetime


_COLUMNS = [devices.c[field.name] for field in fields(Device)]
_families = device_family_counters.c


def add_devices(transaction: Connection, new: Sequence[Device]) -> set[str]:
    """Add devices; return the provisioning ids of those that were added.

    A device whose serial, public key or NUC hash exists, in the database or earlier in `new`, is
    left out: UNIQUE constraints decide every race. What was added is counted in this transaction.
    """
    rows = [{field.name: _plain(device, field.name) for field in fields(Device)} for device in new]
    returned = transaction.execute(
        insert_or_skip(transaction, devices).returning(devices.c.provisioning_id), rows
    )
    added = set(returned.scalars())
    counts = Counter(device.device_family for device in new if device.provisioning_id in added)
    if counts:
        # In the order of their names, so that two programs never wait for each other.
        transaction.execute(
            insert_or_add(transaction, device_family_counters, _families.devices),
            [{"device_family": name, "devices": n} for name, n in sorted(counts.items())],
        )
    return added


def find_device(connection: Connection, device_serial: str) -> Device | None:
    """Return the device of this serial."""
    row = connection.execute(
        select(*_COLUMNS).where(devices.c.device_serial == device_serial)
    ).one_or_none()
    return None if row is None else _device(row)


def holds_public_key(connection: Connection, fingerprint: bytes) -> bool:
    """Say whether a device holds the public key with this fingerprint."""
    return _exists(connection, devices.c.public_key_fingerprint == fingerprint)


def holds_nuc_hash(connection: Connection, nuc_hash: bytes) -> bool:
    """Say whether a device has the NUC hash with this HMAC."""
    return _exists(connection, devices.c.nuc_hash == nuc_hash)


def list_devices(connection: Connection, *, limit: int, after: str | None = None) -> list[Device]:
    """Return up to `limit` devices in the order of their serials, those behind `after`."""
    query = select(*_COLUMNS).order_by(devices.c.device_serial).limit(limit)
    if after is not None:
        query = query.where(devices.c.device_serial > after)
    return [_device(row) for row in connection.execute(query)]


def are_registered(connection: Connection) -> bool:
    """Say whether there is any device at all, by the register itself."""
    return connection.execute(select(exists(select(devices.c.device_serial)))).scalar_one()


def count_devices(connection: Connection) -> int:
    """Return how many devices are registered, by their counters."""
    total = func.coalesce(func.sum(_families.devices), 0)
    return int(connection.execute(select(total)).scalar_one())


def count_by_family(connection: Connection) -> dict[str, int]:
    """Return how many devices each family has, by their counters, largest first."""
    rows = connection.execute(
        select(_families.device_family, _families.devices).order_by(
            _families.devices.desc(), _families.device_family
        )
    )
    return {row.device_family: row.devices for row in rows}


def set_status(
    transaction: Connection, device_serial: str, *, old: DeviceStatus, new: DeviceStatus
) -> bool:
    """Change a device's status from `old` to `new`; False where it was not `old`."""
    changed = transaction.execute(
        update(devices)
        .where(devices.c.device_serial == device_serial, devices.c.status == old.value)
        .values(status=new.value)
    )
    return changed.rowcount == 1


def _exists(connection: Connection, condition: ColumnElement[bool]) -> bool:
    return connection.execute(select(exists().where(condition))).scalar_one()


def _plain(device: Device, name: str) -> object:
    value = getattr(device, name)
    return list(value) if isinstance(value, tuple) else value


def _device(row: Row[Any]) -> Device:
    values = row._asdict()
    values["table_assignments"] = tuple(values["table_assignments"])
    values["status"] = DeviceStatus(values["status"])
    return Device(**values)
