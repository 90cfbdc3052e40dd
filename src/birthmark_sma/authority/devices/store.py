"""Store and read registered devices, in the table `registered_devices`.

Called by provisioning, the dashboard, background tasks, `sma devices` and the doctor. Validation
has its own query in `validation.store`, and `uniqueness` looks up what no two devices may share.
The number of devices by family is kept in `device_family_counters`: every function that adds or
deletes devices must update it in the same transaction.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from birthmark_sma.authority.devices import store_postgresql, store_sqlite
from birthmark_sma.authority.devices.uniqueness import COLLISION_SEPARATOR
from birthmark_sma.pki.names import fold
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import choose, insert_or_update, is_any_of
from birthmark_sma.storage.schema.certificates import earlier_certificates, revoked_certificates
from birthmark_sma.storage.schema.devices import OUT_OF_ORDER, device_family_counters, re_enrolments
from birthmark_sma.storage.schema.devices import registered_devices as devices


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device. `nuc_hash` is the HMAC of the NUC hash, never the hash itself.

    Certificate and public key are PEM. The certificate's serial number is lower-case hex.
    `public_key_fingerprint` is the SHA-256 of the DER SubjectPublicKeyInfo. `certificate_issuer` is
    the name of a CA certificate. `certificate_expires_at` is None only in rows that operators
    inserted. `status_reason`, `status_actor` and `status_changed_at` are of the last change of the
    status, or None if it never changed.
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
    table_epochs: tuple[int, ...]
    """The epochs of the keys that the device has, parallel to `table_assignments`."""
    certificate_expires_at: datetime | None = None
    certificate_issuer: str = "intermediate"
    status_reason: str | None = None
    status_actor: str | None = None
    status_changed_at: datetime | None = None
    certificate_renewed_at: datetime | None = None
    """The time of the renewal that gave the device its certificate; None after a provisioning."""


_FIELDS = [field.name for field in fields(Device)]
COLUMNS = [devices.c[name] for name in _FIELDS]
"""The columns of a query whose rows `device_of` takes."""
_values = attrgetter(*_FIELDS)
_families = device_family_counters.c
_earlier = earlier_certificates.c


class DeviceSql(Protocol):
    """SQL of this module that differs by database, in `store_postgresql` and `store_sqlite`.

    `rows` map the names of columns to values.
    """

    def insert_devices(
        self, transaction: Connection, rows: Sequence[Mapping[str, Any]]
    ) -> set[str]:
        """Insert rows that violate no UNIQUE constraint; return their provisioning ids."""

    def await_inserts(self, transaction: Connection) -> None:
        """Wait until every transaction that called `hold_inserts` has ended."""

    def hold_inserts(self, transaction: Connection) -> None:
        """Make `await_inserts` of other transactions wait until this one has ended."""

    def await_verdicts(self, transaction: Connection) -> None:
        """Let the commit wait for the validations under way, and new ones for the commit."""

    def has_table(self, table_id: int) -> ColumnElement[bool]:
        """Return the condition that a key table is assigned to the device."""


def _sql(connection: Connection) -> DeviceSql:
    return choose(connection, postgresql=store_postgresql, sqlite=store_sqlite)


def add_devices(transaction: Connection, new: Sequence[Device]) -> set[str]:
    """Add devices and count them by family; return the provisioning ids of those that were added.

    A device is left out if its folded serial, public key or NUC hash exists, in the database or
    earlier in `new`, or if its public key is that of an earlier certificate of a device. UNIQUE
    constraints decide every race. Pass `new` in the order of folded
    serials, which is the lock order of all processes.
    """
    rows = [
        dict(zip(_FIELDS, _values(device), strict=True), serial_folded=fold(device.device_serial))
        for device in new
    ]
    added = _sql(transaction).insert_devices(transaction, rows)
    added -= _delete_with_earlier_keys(transaction, added)
    counts = Counter(device.device_family for device in new if device.provisioning_id in added)
    _count_families(transaction, counts)
    return added


def _delete_with_earlier_keys(transaction: Connection, added: set[str]) -> set[str]:
    """Delete those of the added devices whose key is of an earlier certificate; return their ids.

    It runs after the insertion: while a re-enrolment replaces a key, the UNIQUE constraint makes
    another device with this key wait for its commit, and only a later statement sees its rows.
    """
    if not added:
        return set()
    gone = transaction.execute(
        delete(devices)
        .where(
            is_any_of(transaction, devices.c.provisioning_id, sorted(added)),
            exists().where(_earlier.public_key_fingerprint == devices.c.public_key_fingerprint),
        )
        .returning(devices.c.provisioning_id)
    ).scalars()
    return set(gone)


def replace_identity(transaction: Connection, new: Device) -> None:
    """Replace all fields of the device of this serial but its family, tables and status.

    Raises sqlalchemy.exc.IntegrityError if another device has the public key or the NUC hash.
    """
    kept = {"device_serial", "table_assignments", "device_family"}
    kept |= {name for name in _FIELDS if name.startswith("status")}
    values = {name: getattr(new, name) for name in _FIELDS if name not in kept}
    transaction.execute(
        update(devices).where(devices.c.device_serial == new.device_serial).values(**values)
    )


def set_table_epochs(
    transaction: Connection, device_serial: str, table_epochs: Sequence[int]
) -> None:
    """Store the epochs of the table keys that a device was given again."""
    transaction.execute(
        update(devices)
        .where(devices.c.device_serial == device_serial)
        .values(table_epochs=list(table_epochs))
    )


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
        .returning(devices.c.device_serial, devices.c.device_family)
    ).all()
    for table in (earlier_certificates, re_enrolments):
        serials = [row.device_serial for row in gone]
        transaction.execute(
            delete(table).where(is_any_of(transaction, table.c.device_serial, serials))
        )
    counts = Counter(row.device_family for row in gone)
    _count_families(transaction, {family: -number for family, number in counts.items()})
    return counts.total()


def _count_families(transaction: Connection, added: Mapping[str, int]) -> None:
    """Add these numbers of devices to the counters of their families."""
    if added:
        # Lock order: rows of families are updated in the order of their names, which prevents a
        # deadlock.
        transaction.execute(
            insert_or_update(transaction, device_family_counters, add=[_families.devices]),
            [{"device_family": name, "devices": n} for name, n in sorted(added.items())],
        )


def find_provisioning_ids(connection: Connection, serials: Sequence[str]) -> dict[str, str]:
    """Return the provisioning ids, by serial, of the devices that are registered."""
    rows = connection.execute(
        select(devices.c.device_serial, devices.c.provisioning_id).where(
            is_any_of(connection, devices.c.device_serial, serials)
        )
    )
    return {row.device_serial: row.provisioning_id for row in rows}


def await_registrations(transaction: Connection) -> None:
    """Wait until every transaction that called `hold_registrations` has ended.

    Until this transaction ends, `hold_registrations` waits in others. PostgreSQL may still finish
    the commit of a process that was killed. This waits for it up to ten seconds, else it raises
    DatabaseUnavailableError. On SQLite nothing is to do: a commit ends with its process, and this
    transaction has already waited for the write lock.
    """
    _sql(transaction).await_inserts(transaction)


def hold_registrations(transaction: Connection) -> None:
    """Make `await_registrations` wait for this transaction. Call it before devices are added."""
    _sql(transaction).hold_inserts(transaction)


def await_verdicts(transaction: Connection) -> None:
    """Let the commit wait for the validations under way, and new validations for the commit.

    Call it last in a transaction that changes which tokens pass: a status, a key table, or a NUC
    hash. The lock lasts until the transaction ends. On SQLite nothing is to do: transactions for
    writing run one after the other.
    """
    _sql(transaction).await_verdicts(transaction)


def has_table(connection: Connection, table_id: int) -> ColumnElement[bool]:
    """Return the condition that a key table is assigned to the device. It has no index."""
    return _sql(connection).has_table(table_id)


def find_device(connection: Connection, device_serial: str) -> Device | None:
    """Return the device with exactly this serial, or None."""
    row = connection.execute(
        select(*COLUMNS).where(devices.c.device_serial == device_serial)
    ).one_or_none()
    return None if row is None else device_of(row)


def lock_device(transaction: Connection, device_serial: str) -> Device | None:
    """Return the device with exactly this serial, or None. Lock its row against other changes."""
    row = transaction.execute(
        select(*COLUMNS).where(devices.c.device_serial == device_serial).with_for_update()
    ).one_or_none()
    return None if row is None else device_of(row)


def find_device_by_certificate(connection: Connection, certificate_serial: str) -> Device | None:
    """Return the device whose current certificate has this serial number (lower-case hex)."""
    row = connection.execute(
        select(*COLUMNS).where(devices.c.certificate_serial == certificate_serial)
    ).one_or_none()
    return None if row is None else device_of(row)


def find_devices_named(connection: Connection, name: str) -> list[Device]:
    """Return the device with exactly this serial, else all with the same folded serial.

    There is more than one only if devices were registered before folded serials were unique.
    """
    exact = find_device(connection, name)
    if exact is not None:
        return [exact]
    folded, column = fold(name), devices.c.serial_folded
    rows = connection.execute(
        select(*COLUMNS)
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
    return [device_of(row) for row in rows]


def find_serials_folded(connection: Connection, names: Sequence[str]) -> dict[str, str | None]:
    """Return the serials of the devices whose folded serials these names have, by the names.

    A serial is None if several devices have the name, and missing if no device has it. It is one
    statement: pass up to 1,000 names.
    """
    folded = {name: fold(name) for name in names}
    column, other = devices.c.serial_folded, devices.alias().c.serial_folded
    suffixed = exists().where(
        other > column + COLLISION_SEPARATOR,
        other < column + chr(ord(COLLISION_SEPARATOR) + 1),
    )
    rows = connection.execute(
        select(column, devices.c.device_serial, suffixed).where(
            is_any_of(connection, column, sorted(set(folded.values())))
        )
    )
    found = {each: None if several else serial for each, serial, several in rows}
    return {name: found[each] for name, each in folded.items() if each in found}


def sample_devices(connection: Connection, start: str, *, limit: int) -> list[Device]:
    """Return a sample of up to `limit` devices, by the serial numbers of their certificates.

    `start` is a random serial number in lower-case hex. The sample has the devices from there on in
    ascending order, and continues with the lowest serial number.
    """
    number = devices.c.certificate_serial
    found: list[Device] = []
    for part in (number >= start, number < start):
        query = select(*COLUMNS).where(part).order_by(number).limit(limit - len(found))
        found += [device_of(row) for row in connection.execute(query)]
    return found


def are_registered(connection: Connection) -> bool:
    """Return True if any device is registered. Reads the register, not the counters."""
    return connection.execute(select(exists(select(devices.c.device_serial)))).scalar_one()


def count_devices(connection: Connection) -> int:
    """Return the number of registered devices, from the counters."""
    total = func.coalesce(func.sum(_families.devices), 0)
    return int(connection.execute(select(total)).scalar_one())


def count_out_of_order(connection: Connection) -> dict[DeviceStatus, int]:
    """Return the numbers of devices that are not active, by status. Reads only their index."""
    rows = connection.execute(
        select(devices.c.status, func.count())
        .where(OUT_OF_ORDER)
        .group_by(devices.c.status)
        .order_by(devices.c.status)
    )
    return {DeviceStatus(status): number for status, number in rows}


def list_unlisted(connection: Connection, *, limit: int) -> list[str]:
    """Return up to `limit` serials of devices that are not active, with unrevoked certificates."""
    number = revoked_certificates.c.certificate_serial
    is_listed = exists().where(number == devices.c.certificate_serial)
    unlisted = select(devices.c.device_serial).where(OUT_OF_ORDER, ~is_listed)
    return list(connection.execute(unlisted.limit(limit)).scalars())


def count_by_family(connection: Connection) -> dict[str, int]:
    """Return the number of devices by family, from the counters, largest first."""
    rows = connection.execute(
        select(_families.device_family, _families.devices).order_by(
            _families.devices.desc(), _families.device_family
        )
    )
    return {row.device_family: row.devices for row in rows}


def device_of(row: Row[Any]) -> Device:
    """Return the device of a row that has COLUMNS."""
    values = row._asdict()
    values["table_assignments"] = tuple(values["table_assignments"])
    # NULL in rows that are older than epochs, or that operators inserted.
    values["table_epochs"] = tuple(values["table_epochs"] or [0] * len(values["table_assignments"]))
    values["status"] = DeviceStatus(values["status"])
    return Device(**values)
