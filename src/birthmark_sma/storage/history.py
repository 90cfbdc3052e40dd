"""The audit trail: one row for each camera token that was judged."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select

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
        transaction.exec_driver_sql(_APPEND_ARRAYS, tuple(map(list, zip(*rows, strict=True))))
    else:
        transaction.execute(insert(history), [row._asdict() for row in rows])


# One statement, whatever the number of rows, and one column of values a parameter: PostgreSQL plans
# it once, and the driver converts eight lists instead of eight values a row.
_APPEND_ARRAYS = """
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
SELECT * FROM unnest(
    %b::bytea[], %b::integer[], %b::integer[], %b::text[], %b::text[], %b::text[],
    %b::timestamptz[], %b::text[])
"""


def count_rows(connection: Connection) -> int:
    """Return how many rows there are, by reading all of them."""
    return connection.execute(select(func.count()).select_from(history)).scalar_one()
