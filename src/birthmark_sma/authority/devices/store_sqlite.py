"""Statements of `devices.store` and `devices.uniqueness` for SQLite: see their Protocols.

These two are the only callers. A write transaction excludes all other writers, so that nothing
here waits for another process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, bindparam, exists, func, or_, select

from birthmark_sma.storage.portable_sql import insert_or_skip
from birthmark_sma.storage.schema.certificates import earlier_certificates
from birthmark_sma.storage.schema.devices import registered_devices

_devices = registered_devices.c


def _exists(column: Column[Any]) -> ColumnElement[bool]:
    return exists().where(column == bindparam(column.name, type_=column.type))


# The exact serial is compared as well, because rows that operators inserted have no folded serial.
# Built once: this runs before every signature.
_CONFLICTS = select(
    or_(_exists(_devices.serial_folded), _exists(_devices.device_serial)),
    or_(
        _exists(_devices.public_key_fingerprint),
        _exists(earlier_certificates.c.public_key_fingerprint),
    ),
    _exists(_devices.nuc_hash),
)


def insert_devices(transaction: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert rows that violate no UNIQUE constraint; return their provisioning ids."""
    inserting = insert_or_skip(transaction, registered_devices)
    return set(transaction.execute(inserting.returning(_devices.provisioning_id), rows).scalars())


def await_inserts(transaction: Connection) -> None:
    """Do nothing: a commit ends with its process, and this transaction has the write lock."""


def hold_inserts(transaction: Connection) -> None:
    """Do nothing, for the same reason."""


def await_verdicts(transaction: Connection) -> None:
    """Do nothing: a batch of validations has the write lock for its whole transaction."""


def has_table(table_id: int) -> ColumnElement[bool]:
    """Return the condition that a key table is assigned to the device."""
    assigned = func.json_each(_devices.table_assignments).table_valued("value")
    return exists(select(assigned.c.value).where(assigned.c.value == table_id))


def find_conflicts(
    connection: Connection, serial: str, folded: str, fingerprint: bytes, nuc_hash: bytes
) -> Sequence[bool]:
    """Return whether another device has the serial, the public key, the NUC hash."""
    marks = {
        "serial_folded": folded,
        "device_serial": serial,
        "public_key_fingerprint": fingerprint,
        "nuc_hash": nuc_hash,
    }
    return connection.execute(_CONFLICTS, marks).one()
