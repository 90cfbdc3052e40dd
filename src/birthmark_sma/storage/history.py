"""The audit trail: one row for each camera token that was judged."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.postgresql import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    at_once,
)
from birthmark_sma.storage.schema import as_sqlite_text
from birthmark_sma.storage.schema import validation_history as history


class AuditRow(NamedTuple):
    """One judged camera token. `device_serial` is set wherever the device is known, FAIL or not."""

    encrypted_nuc_hash: bytes
    table_id: int
    key_index: int
    validation_result: str
    reason: str
    device_serial: str | None
    validated_at: datetime
    request_ip: str | None


def append(transaction: Connection, rows: Sequence[AuditRow]) -> None:
    """Write rows to the audit trail, durable with the transaction."""
    if transaction.dialect.name == "postgresql":
        _append_on_postgresql(transaction, rows)
    else:
        _append_on_sqlite(transaction, rows)


_INTO_HISTORY = """
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
"""

# One statement, whatever the number of rows, and one column of values a parameter.
_ON_POSTGRESQL = (
    _INTO_HISTORY
    + """
SELECT * FROM unnest(
    $1::bytea[], $2::integer[], $3::integer[], $4::text[], $5::text[], $6::text[],
    $7::timestamptz[], $8::text[])
"""
)


def _append_on_postgresql(transaction: Connection, rows: Sequence[AuditRow]) -> None:
    columns = zip(*rows, strict=True)
    hashes, tables, indexes, results, reasons, serials, times, addresses = columns
    at_once(
        transaction,
        _ON_POSTGRESQL,
        (
            array_of_bytes(hashes),
            array_of_integers(tables),
            array_of_integers(indexes),
            array_of_text(results),
            array_of_text(reasons),
            array_of_text(serials),
            array_of_times(times),
            array_of_text(addresses),
        ),
    )


# Many rows a statement, as each statement is several calls of the driver; of a few sizes only, as
# SQLite keeps statements prepared by their text.
_ON_SQLITE = {
    size: _INTO_HISTORY + "VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * size)
    for size in (256, 64, 16, 4, 1)
}


def _append_on_sqlite(transaction: Connection, rows: Sequence[AuditRow]) -> None:
    start = 0
    while start < len(rows):
        size = next(size for size in _ON_SQLITE if size <= len(rows) - start)
        values = [
            value
            for row in rows[start : start + size]
            for value in (*row[:6], as_sqlite_text(row.validated_at), row.request_ip)
        ]
        transaction.exec_driver_sql(_ON_SQLITE[size], tuple(values))
        start += size


def count_rows(connection: Connection) -> int:
    """Return how many rows there are, by reading all of them."""
    return connection.execute(select(func.count()).select_from(history)).scalar_one()
