"""Store and read registered devices, in the table `registered_devices`.

Called by provisioning, the dashboard, background tasks, `sma devices` and the doctor. Validation
has its own query in `validation.device_lookup`. The number of devices by family is kept in
`device_family_counters`: every function that adds or deletes devices must update it in the same
transaction.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import insert_or_skip, insert_or_update, is_any_of
from birthmark_sma.storage.postgresql_driver import (
    TRUE,
    array_of_bytes,
    array_of_text,
    array_of_times,
    execute_blocking,
)
from birthmark_sma.storage.schema import device_family_counters
from birthmark_sma.storage.schema import registered_devices as devices


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device. `nuc_hash` is the HMAC of the NUC hash, never the hash itself.

    Certificate and public key are PEM. The certificate's serial number is lower-case hex.
    `public_key_fingerprint` is the SHA-256 of the DER SubjectPublicKeyInfo.
    """

    device_serial: str
    nuc_hash: bytes = field(repr=False)
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


_COLUMNS = [devices.c[field.name] for field in fields(Device)]  # in the order of the fields
_families = device_family_counters.c

COLLISION_SEPARATOR = "\t"
"""Separates the suffix of a stored folded serial if an older device has the same folded serial.

Folding never produces this character."""


def add_devices(transaction: Connection, new: Sequence[Device]) -> set[str]:
    """Add devices and count them by family; return the provisioning ids of those that were added.

    A device is left out if its folded serial, public key or NUC hash exists, in the database or
    earlier in `new`. UNIQUE constraints decide every race. Pass `new` in the order of folded
    serials, which is the lock order of all processes.
    """
    if transaction.dialect.name == "postgresql":
        added = _add_on_postgresql(transaction, new)
    else:
        rows = [
            {each.name: _plain(device, each.name) for each in _COLUMNS}
            | {"serial_folded": fold(device.device_serial)}
            for device in new
        ]
        returned = transaction.execute(
            insert_or_skip(transaction, devices).returning(devices.c.provisioning_id), rows
        )
        added = set(returned.scalars())
    counts = Counter(device.device_family for device in new if device.provisioning_id in added)
    if counts:
        # Lock order: rows of families are updated in the order of their names, which prevents a
        # deadlock.
        transaction.execute(
            insert_or_update(transaction, device_family_counters, add=[_families.devices]),
            [{"device_family": name, "devices": n} for name, n in sorted(counts.items())],
        )
    return added


# The key tables of each device are sent as text: unnest() would flatten an array of arrays.
_ADD_ON_POSTGRESQL = """
INSERT INTO registered_devices (
    device_serial, nuc_hash, table_assignments, device_certificate, certificate_serial,
    device_public_key, public_key_fingerprint, device_family, app_version, status,
    provisioning_id, provisioned_at, serial_folded)
SELECT serial, nuc_hash, CAST(tables AS integer[]), certificate, number, key, fingerprint, family,
    version, status, id, at, folded
FROM unnest(
    $1::text[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::text[]
) AS new (serial, nuc_hash, tables, certificate, number, key, fingerprint, family, version,
    status, id, at, folded)
ON CONFLICT DO NOTHING RETURNING provisioning_id
"""


def _add_on_postgresql(transaction: Connection, new: Sequence[Device]) -> set[str]:
    tables = [f"{{{','.join(map(str, device.table_assignments))}}}" for device in new]
    added = execute_blocking(
        transaction,
        _ADD_ON_POSTGRESQL,
        (
            array_of_text([device.device_serial for device in new]),
            array_of_bytes([device.nuc_hash for device in new]),
            array_of_text(tables),
            array_of_text([device.device_certificate for device in new]),
            array_of_text([device.certificate_serial for device in new]),
            array_of_text([device.device_public_key for device in new]),
            array_of_bytes([device.public_key_fingerprint for device in new]),
            array_of_text([device.device_family for device in new]),
            array_of_text([device.app_version for device in new]),
            array_of_text([device.status.value for device in new]),
            array_of_text([device.provisioning_id for device in new]),
            array_of_times([device.provisioned_at for device in new]),
            array_of_text([fold(device.device_serial) for device in new]),
        ),
    )
    return {(added.get_value(row, 0) or b"").decode() for row in range(added.ntuples)}


def delete_older(transaction: Connection, before: datetime, *, limit: int) -> int:
    """Delete up to `limit` of the oldest devices provisioned before a time; return their number.

    Rows that another transaction has locked are skipped. Only a sandbox may call this: elsewhere a
    deleted device could be provisioned again.
    """
    oldest = (
        select(devices.c.device_serial)
        .where(devices.c.provisioned_at < before)
        .order_by(devices.c.provisioned_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    gone = transaction.execute(
        delete(devices)
        .where(devices.c.device_serial.in_(oldest))
        .returning(devices.c.device_family)
    ).scalars()
    counts = Counter(gone)
    if counts:
        transaction.execute(
            insert_or_update(transaction, device_family_counters, add=[_families.devices]),
            [{"device_family": name, "devices": -n} for name, n in sorted(counts.items())],
        )
    return counts.total()


def find_provisioning_ids(connection: Connection, serials: Sequence[str]) -> dict[str, str]:
    """Return the provisioning ids, by serial, of the devices that are registered."""
    rows = connection.execute(
        select(devices.c.device_serial, devices.c.provisioning_id).where(
            is_any_of(connection, devices.c.device_serial, serials)
        )
    )
    return {row.device_serial: row.provisioning_id for row in rows}


def await_registrations(transaction: Connection) -> None:
    """Wait until every transaction that registers devices has ended, and block new ones.

    PostgreSQL may still finish the commit of a process that was killed. A table lock waits for it,
    up to ten seconds, else DatabaseUnavailableError. On SQLite nothing is to do: a commit ends with
    its process, and this transaction has already waited for the write lock.
    """
    if transaction.dialect.name == "postgresql":
        # LOCAL: the timeout ends with the transaction, so the pooled connection does not keep it.
        transaction.execute(text("SET LOCAL lock_timeout = '10s'"))
        # SHARE MODE conflicts with the lock of INSERT, and lets reads continue.
        transaction.execute(text(f"LOCK TABLE {devices.name} IN SHARE MODE"))


class RegistrationConflicts(NamedTuple):
    """The unique fields of a new device. True means that another device has the same value."""

    device_serial: bool
    public_key: bool
    nuc_hash: bool


# The exact serial is compared as well, because rows that operators inserted have no folded serial.
_TAKEN_ON_POSTGRESQL = """
SELECT EXISTS (SELECT FROM registered_devices WHERE serial_folded = $1::text)
           OR EXISTS (SELECT FROM registered_devices WHERE device_serial = $2::text),
       EXISTS (SELECT FROM registered_devices WHERE public_key_fingerprint = $3::bytea),
       EXISTS (SELECT FROM registered_devices WHERE nuc_hash = $4::bytea)
"""


def _exists(mark: ColumnElement[Any]) -> ColumnElement[bool]:
    return exists().where(mark == bindparam(mark.key, type_=mark.type))


_TAKEN = select(
    or_(_exists(devices.c.serial_folded), _exists(devices.c.device_serial)),
    _exists(devices.c.public_key_fingerprint),
    _exists(devices.c.nuc_hash),
)


def find_conflicts(
    connection: Connection, device_serial: str, public_key_fingerprint: bytes, nuc_hash: bytes
) -> RegistrationConflicts:
    """Return the conflicts of a new device. `nuc_hash` is the HMAC of the NUC hash.

    This runs before every signature, so it is one query.
    """
    if connection.dialect.name == "postgresql":
        marks = (
            fold(device_serial).encode(),
            device_serial.encode(),
            public_key_fingerprint,
            nuc_hash,
        )
        found = execute_blocking(connection, _TAKEN_ON_POSTGRESQL, marks)
        return RegistrationConflicts(*(found.get_value(0, column) == TRUE for column in range(3)))
    asked = {
        "serial_folded": fold(device_serial),
        "device_serial": device_serial,
        "public_key_fingerprint": public_key_fingerprint,
        "nuc_hash": nuc_hash,
    }
    return RegistrationConflicts._make(connection.execute(_TAKEN, asked).one())


def find_device(connection: Connection, device_serial: str) -> Device | None:
    """Return the device with exactly this serial, or None."""
    row = connection.execute(
        select(*_COLUMNS).where(devices.c.device_serial == device_serial)
    ).one_or_none()
    return None if row is None else _device(row)


def find_devices_named(connection: Connection, name: str) -> list[Device]:
    """Return the device with exactly this serial, else all with the same folded serial.

    There is more than one only if devices were registered before folded serials were unique.
    """
    exact = find_device(connection, name)
    if exact is not None:
        return [exact]
    folded, column = fold(name), devices.c.serial_folded
    rows = connection.execute(
        select(*_COLUMNS)
        .where(
            or_(
                column == folded,
                # A range instead of LIKE, so that the index is used: all suffixed folded serials.
                and_(
                    column >= folded + COLLISION_SEPARATOR,
                    column < folded + chr(ord(COLLISION_SEPARATOR) + 1),
                ),
            )
        )
        .order_by(column)
    )
    return [_device(row) for row in rows]


def list_collisions(connection: Connection, *, limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` pairs of serials with equal folded serials: the older, then the later.

    This reads the whole index of folded serials: half a second for a million devices.
    """
    later = devices.alias("later")
    parted = later.c.serial_folded.contains(COLLISION_SEPARATOR)
    rows = connection.execute(
        select(later.c.device_serial).where(parted).order_by(later.c.serial_folded).limit(limit)
    ).scalars()
    pairs = []
    for serial in rows:
        older = connection.execute(
            select(devices.c.device_serial).where(devices.c.serial_folded == fold(serial))
        ).scalar()
        pairs.append((older or fold(serial), serial))
    return pairs


class KeyHolder(NamedTuple):
    """The device that has a public key."""

    device_serial: str
    status: DeviceStatus


def find_key_holders(
    connection: Connection, fingerprints: Sequence[bytes]
) -> dict[bytes, KeyHolder]:
    """Return the devices with these public keys, by fingerprint. Unknown ones are missing."""
    key = devices.c.public_key_fingerprint
    rows = connection.execute(
        select(key, devices.c.device_serial, devices.c.status).where(
            is_any_of(connection, key, fingerprints)
        )
    )
    return {bytes(found): KeyHolder(serial, DeviceStatus(status)) for found, serial, status in rows}


def list_devices(connection: Connection, *, limit: int, after: str | None = None) -> list[Device]:
    """Return up to `limit` devices after the serial `after`, in the order of their serials."""
    query = select(*_COLUMNS).order_by(devices.c.device_serial).limit(limit)
    if after is not None:
        query = query.where(devices.c.device_serial > after)
    return [_device(row) for row in connection.execute(query)]


def sample_devices(connection: Connection, start: str, *, limit: int) -> list[Device]:
    """Return a sample of up to `limit` devices, by the serial numbers of their certificates.

    `start` is a random serial number in lower-case hex. The sample has the devices from there on in
    ascending order, and continues with the lowest serial number.
    """
    number = devices.c.certificate_serial
    found: list[Device] = []
    for part in (number >= start, number < start):
        query = select(*_COLUMNS).where(part).order_by(number).limit(limit - len(found))
        found += [_device(row) for row in connection.execute(query)]
    return found


def are_registered(connection: Connection) -> bool:
    """Return True if any device is registered. Reads the register, not the counters."""
    return connection.execute(select(exists(select(devices.c.device_serial)))).scalar_one()


def count_devices(connection: Connection) -> int:
    """Return the number of registered devices, from the counters."""
    total = func.coalesce(func.sum(_families.devices), 0)
    return int(connection.execute(select(total)).scalar_one())


def count_provisioned_before(connection: Connection, before: datetime, most: int) -> int:
    """Return the number, up to `most`, of unrevoked devices that were provisioned before a time."""
    found = (
        select(devices.c.provisioned_at)
        .where(devices.c.provisioned_at < before, devices.c.status != DeviceStatus.REVOKED.value)
        .limit(most)
        .subquery()
    )
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


def count_by_family(connection: Connection) -> dict[str, int]:
    """Return the number of devices by family, from the counters, largest first."""
    rows = connection.execute(
        select(_families.device_family, _families.devices).order_by(
            _families.devices.desc(), _families.device_family
        )
    )
    return {row.device_family: row.devices for row in rows}


def set_status(
    transaction: Connection, device_serial: str, *, old: DeviceStatus, new: DeviceStatus
) -> bool:
    """Change a device's status from `old` to `new`; return False if it was not `old`."""
    # Compare and set: of two processes that change a status, only one succeeds.
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
