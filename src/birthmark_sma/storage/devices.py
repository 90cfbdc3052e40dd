"""Registered devices."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    Text,
    bindparam,
    cast,
    column,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import ReturningInsert

from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.dialects import insert_or_skip, is_any_of
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


class DeviceStanding(NamedTuple):
    """What a verdict needs to know of a device."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    table_assignments: Sequence[int]


_COLUMN_NAMES = [field.name for field in fields(Device)]
_TABLES = "table_assignments"
_COLUMNS = [devices.c[name] for name in _COLUMN_NAMES]


def add_devices(transaction: Connection, new: Sequence[Device]) -> set[str]:
    """Add devices; return the provisioning ids of those that were added.

    A device whose serial, public key or NUC hash exists, in the database or earlier in `new`, is
    left out: UNIQUE constraints decide every race.
    """
    if transaction.dialect.name == "postgresql":
        arrays = {name: [_plain(device, name) for device in new] for name in _COLUMN_NAMES}
        # An array of arrays would be taken apart as well, so each travels as its text.
        arrays["table_assignments"] = [
            f"{{{','.join(map(str, d.table_assignments))}}}" for d in new
        ]
        return {row.provisioning_id for row in transaction.execute(_ADD_ARRAYS, arrays)}
    rows = [{name: _plain(device, name) for name in _COLUMN_NAMES} for device in new]
    added = transaction.execute(
        insert_or_skip(transaction, devices).returning(devices.c.provisioning_id), rows
    )
    return {row.provisioning_id for row in added}


def _add_arrays() -> ReturningInsert[tuple[str]]:
    """One INSERT with an array a column: its text is the same for one device and for a thousand.

    A statement with a parameter for every value costs PostgreSQL and its driver more than the rows.
    """
    columns = [column(c.name, Text() if c.name == _TABLES else c.type) for c in _COLUMNS]
    arrays = [bindparam(each.name, type_=ARRAY(each.type)) for each in columns]
    rows = func.unnest(*arrays).table_valued(*columns, name="new").render_derived()
    values = [
        cast(rows.c[c.name], c.type) if c.name == _TABLES else rows.c[c.name] for c in _COLUMNS
    ]
    return (
        postgresql.insert(devices)
        .from_select(_COLUMN_NAMES, select(*values))
        .on_conflict_do_nothing()
        .returning(devices.c.provisioning_id)
    )


_ADD_ARRAYS = _add_arrays()


def find_provisioning_ids(connection: Connection, serials: Sequence[str]) -> dict[str, str]:
    """Return the provisioning ids of those of these devices that are registered, by serial."""
    rows = connection.execute(
        select(devices.c.device_serial, devices.c.provisioning_id).where(
            is_any_of(connection, devices.c.device_serial, serials)
        )
    )
    return {row.device_serial: row.provisioning_id for row in rows}


class Taken(NamedTuple):
    """Which marks of a device that wants to be registered are registered already."""

    device_serial: bool
    public_key: bool
    nuc_hash: bool


# Built once: this question comes before every signature, and its text costs more than its answer.
_TAKEN = select(
    *(
        exists().where(mark == bindparam(mark.name, type_=mark.type))
        for mark in (devices.c.device_serial, devices.c.public_key_fingerprint, devices.c.nuc_hash)
    )
)


def find_taken(
    connection: Connection, device_serial: str, public_key_fingerprint: bytes, nuc_hash: bytes
) -> Taken:
    """Say what of a new device is taken. `nuc_hash` is the HMAC of the NUC hash."""
    asked = {
        "device_serial": device_serial,
        "public_key_fingerprint": public_key_fingerprint,
        "nuc_hash": nuc_hash,
    }
    return Taken._make(connection.execute(_TAKEN, asked).one())


def find_device(connection: Connection, device_serial: str) -> Device | None:
    """Return the device of this serial."""
    row = connection.execute(
        select(*_COLUMNS).where(devices.c.device_serial == device_serial)
    ).one_or_none()
    return None if row is None else _device(row)


def find_standings(
    connection: Connection, nuc_hashes: Sequence[bytes]
) -> dict[bytes, DeviceStanding]:
    """Return what verdicts need, by HMAC of the NUC hash, in one query."""
    table = devices.c
    rows = connection.execute(
        select(
            table.nuc_hash,
            table.device_serial,
            table.device_family,
            table.status,
            table.table_assignments,
        ).where(is_any_of(connection, table.nuc_hash, nuc_hashes))
    )
    return {
        row.nuc_hash: DeviceStanding(
            row.device_serial, row.device_family, DeviceStatus(row.status), row.table_assignments
        )
        for row in rows
    }


def list_devices(connection: Connection, *, limit: int, after: str | None = None) -> list[Device]:
    """Return up to `limit` devices in the order of their serials, those behind `after`."""
    query = select(*_COLUMNS).order_by(devices.c.device_serial).limit(limit)
    if after is not None:
        query = query.where(devices.c.device_serial > after)
    return [_device(row) for row in connection.execute(query)]


def count_devices(connection: Connection) -> int:
    """Return how many devices are registered."""
    return connection.execute(select(func.count()).select_from(devices)).scalar_one()


def count_by_family(connection: Connection) -> dict[str, int]:
    """Return how many devices each family has, largest first."""
    count = func.count().label("devices")
    rows = connection.execute(
        select(devices.c.device_family, count)
        .group_by(devices.c.device_family)
        .order_by(count.desc(), devices.c.device_family)
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


def _plain(device: Device, name: str) -> object:
    value = getattr(device, name)
    return list(value) if isinstance(value, tuple) else value


def _device(row: Row[Any]) -> Device:
    values = row._asdict()
    values["table_assignments"] = tuple(values["table_assignments"])
    values["status"] = DeviceStatus(values["status"])
    return Device(**values)
