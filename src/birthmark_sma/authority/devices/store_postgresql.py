"""Statements of `devices.store` for PostgreSQL: see `DeviceSql` there.

Each runs in one blocking call of libpq, because every call of the driver costs a signing thread
more than the statement itself. `devices.store` is the only caller.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, LargeBinary, String, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.postgresql_driver import (
    TRUE,
    array_of_bytes,
    array_of_text,
    array_of_times,
    execute_blocking,
)
from birthmark_sma.storage.schema import registered_devices as devices


def _array_of_arrays(values: Sequence[Sequence[int]]) -> bytes:
    """Return a `text[]` of array literals, as unnest() would flatten an array of arrays."""
    return array_of_text([f"{{{','.join(map(str, each))}}}" for each in values])


# By the type of a column: its type in the array that is sent, and how to encode this array.
_ARRAYS: dict[type[TypeEngine[Any]], tuple[str, Callable[[Sequence[Any]], bytes]]] = {
    LargeBinary: ("bytea[]", array_of_bytes),
    String: ("text[]", array_of_text),
    Text: ("text[]", array_of_text),
    UtcDateTime: ("timestamptz[]", array_of_times),
    ARRAY: ("text[]", _array_of_arrays),
}
_TYPES, _ENCODERS = zip(*(_ARRAYS[type(each.type)] for each in devices.columns), strict=True)
_NAMES = ", ".join(each.name for each in devices.columns)
# One array for each column, so that the statement is the same for any number of devices.
_ARRAYS_SENT = ", ".join(f"${number}::{each}" for number, each in enumerate(_TYPES, 1))
_VALUES = ", ".join(
    f"CAST({each.name} AS integer[])" if isinstance(each.type, ARRAY) else each.name
    for each in devices.columns
)
_INSERT = " ".join(
    (
        *("INSERT INTO", devices.name, "(", _NAMES, ")"),
        *("SELECT", _VALUES, "FROM unnest(", _ARRAYS_SENT, ") AS new (", _NAMES, ")"),
        "ON CONFLICT DO NOTHING RETURNING provisioning_id",
    )
)
_in_order = itemgetter(*(each.name for each in devices.columns))
# The exact serial is compared as well, because rows that operators inserted have no folded serial.
_CONFLICTS = """
SELECT EXISTS (SELECT FROM registered_devices WHERE serial_folded = $1::text)
           OR EXISTS (SELECT FROM registered_devices WHERE device_serial = $2::text),
       EXISTS (SELECT FROM registered_devices WHERE public_key_fingerprint = $3::bytea),
       EXISTS (SELECT FROM registered_devices WHERE nuc_hash = $4::bytea)
"""


def insert_devices(transaction: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert rows that violate no UNIQUE constraint; return their provisioning ids."""
    columns = zip(*map(_in_order, rows), strict=True)
    values = [encode(each) for encode, each in zip(_ENCODERS, columns, strict=True)]
    added = execute_blocking(transaction, _INSERT, values)
    return {(added.get_value(row, 0) or b"").decode() for row in range(added.ntuples)}


def await_inserts(transaction: Connection) -> None:
    """Wait until every transaction that inserts devices has ended, and block new ones.

    PostgreSQL may still finish the commit of a process that was killed. A table lock waits for it,
    up to ten seconds, else DatabaseUnavailableError.
    """
    # LOCAL: the timeout ends with the transaction, so the pooled connection does not keep it.
    transaction.execute(text("SET LOCAL lock_timeout = '10s'"))
    # SHARE MODE conflicts with the lock of INSERT, and lets reads continue.
    transaction.execute(text(f"LOCK TABLE {devices.name} IN SHARE MODE"))


def find_conflicts(
    connection: Connection, serial: str, folded: str, fingerprint: bytes, nuc_hash: bytes
) -> Sequence[bool]:
    """Return whether another device has the serial, the public key, the NUC hash."""
    values = (folded.encode(), serial.encode(), fingerprint, nuc_hash)
    found = execute_blocking(connection, _CONFLICTS, values)
    return [found.get_value(0, column) == TRUE for column in range(3)]
