"""Find the devices of a batch of camera tokens by the HMAC of their NUC hash.

Called by `validation.service` for every batch. This is a hot path, so the SQL is written out for
both databases with as few driver calls as possible: each call releases the interpreter's lock, and
a busy event loop then takes it. This module must not cache devices, because several processes share
the database (docs/adr/0003).
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from psycopg.pq.abc import PGresult
from sqlalchemy import Connection

from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.postgresql_driver import (
    array_of_bytes,
    execute_blocking,
    parse_integer_array,
)


class FoundDevice(NamedTuple):
    """The fields of a registered device that a verdict needs."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    table_assignments: Sequence[int]


def find_standings(connection: Connection, nuc_hashes: Sequence[bytes]) -> dict[bytes, FoundDevice]:
    """Return the devices with these HMACs of NUC hashes, by HMAC, in one query.

    An HMAC that belongs to no device is missing in the result.
    """
    if connection.dialect.name == "postgresql":
        return _find_on_postgresql(connection, nuc_hashes)
    return _find_on_sqlite(connection, nuc_hashes)


_ON_POSTGRESQL = """
SELECT nuc_hash, device_serial, device_family, status, table_assignments
FROM registered_devices WHERE nuc_hash = ANY($1::bytea[])
"""
# Keys are bytes, as in PostgreSQL's binary format: no status is decoded.
_STATUSES = {status.value.encode(): status for status in DeviceStatus}


def _find_on_postgresql(
    connection: Connection, nuc_hashes: Sequence[bytes]
) -> dict[bytes, FoundDevice]:
    found = execute_blocking(connection, _ON_POSTGRESQL, [array_of_bytes(nuc_hashes)])
    return _read(found)


def _read(found: PGresult) -> dict[bytes, FoundDevice]:
    # Values are in PostgreSQL's binary format. No column is NULL: `or b""` only narrows the type.
    standings = {}
    for row in range(found.ntuples):
        nuc_hash, serial, family, status, tables = (
            found.get_value(row, column) or b"" for column in range(5)
        )
        standings[nuc_hash] = FoundDevice(
            serial.decode(), family.decode(), _STATUSES[status], parse_integer_array(tables)
        )
    return standings


# All devices come back as one JSON value, because each row would be a driver call. The number of
# parameters is a power of two, because the driver caches prepared statements by their text. Unused
# parameters are NULL, which equals nothing.
_ON_SQLITE = """
SELECT json_group_array(json_array(
    hex(nuc_hash), device_serial, device_family, status, json(table_assignments)))
FROM registered_devices WHERE nuc_hash IN ({})
"""


def _find_on_sqlite(
    connection: Connection, nuc_hashes: Sequence[bytes]
) -> dict[bytes, FoundDevice]:
    size = 1 << max(len(nuc_hashes) - 1, 0).bit_length()
    sought = (*nuc_hashes, *[None] * (size - len(nuc_hashes)))
    statement = _ON_SQLITE.format(",".join("?" * size))
    found = connection.exec_driver_sql(statement, sought).scalar_one()
    return {
        bytes.fromhex(nuc_hash): FoundDevice(serial, family, DeviceStatus(status), tables)
        for nuc_hash, serial, family, status, tables in json.loads(found)
    }
