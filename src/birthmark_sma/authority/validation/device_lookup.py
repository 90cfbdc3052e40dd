"""What verdicts need to know of devices: the read that every camera token waits for.

Written out for both databases, and answered with as few calls into their drivers as possible: each
call lets go of the interpreter's lock, which a busy event loop then takes.
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
    """What a verdict needs to know of a device."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    table_assignments: Sequence[int]


def find_standings(connection: Connection, nuc_hashes: Sequence[bytes]) -> dict[bytes, FoundDevice]:
    """Return what is known of the devices with these HMACs of their NUC hash, in one query."""
    if connection.dialect.name == "postgresql":
        return _find_on_postgresql(connection, nuc_hashes)
    return _find_on_sqlite(connection, nuc_hashes)


_ON_POSTGRESQL = """
SELECT nuc_hash, device_serial, device_family, status, table_assignments
FROM registered_devices WHERE nuc_hash = ANY($1::bytea[])
"""
_STATUSES = {status.value.encode(): status for status in DeviceStatus}


def _find_on_postgresql(
    connection: Connection, nuc_hashes: Sequence[bytes]
) -> dict[bytes, FoundDevice]:
    found = execute_blocking(connection, _ON_POSTGRESQL, [array_of_bytes(nuc_hashes)])
    return _read(found)


def _read(found: PGresult) -> dict[bytes, FoundDevice]:
    standings = {}
    for row in range(found.ntuples):
        nuc_hash, serial, family, status, tables = (
            found.get_value(row, column) or b"" for column in range(5)
        )
        standings[nuc_hash] = FoundDevice(
            serial.decode(), family.decode(), _STATUSES[status], parse_integer_array(tables)
        )
    return standings


# All devices in one row, as each row would be a call. SQLite keeps a statement prepared by its
# text, so the number of parameters goes up in powers of two; NULL equals nothing.
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
