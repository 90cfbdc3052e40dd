"""The audit trail: one row for each camera token that was judged."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select

from birthmark_sma.storage.postgresql import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    at_once,
)
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
        columns = zip(*rows, strict=True)
        hashes, tables, indexes, results, reasons, serials, times, addresses = columns
        at_once(
            transaction,
            _APPEND_ARRAYS,
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
    else:
        transaction.execute(insert(history), [row._asdict() for row in rows])


# One statement, whatever the number of rows, and one column of values a parameter: PostgreSQL plans
# it once, and the driver converts eight lists instead of eight values a row.
_APPEND_ARRAYS = """
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
SELECT * FROM unnest(
    $1::bytea[], $2::integer[], $3::integer[], $4::text[], $5::text[], $6::text[],
    $7::timestamptz[], $8::text[])
"""


def count_since(connection: Connection, since: datetime) -> dict[str, dict[str, int]]:
    """Return how often each reason was given since a time, by result."""
    rows = connection.execute(
        select(history.c.validation_result, history.c.reason, func.count().label("times"))
        .where(history.c.validated_at >= since)
        .group_by(history.c.validation_result, history.c.reason)
    )
    counts: dict[str, dict[str, int]] = {"PASS": {}, "FAIL": {}}
    for row in rows:
        counts[row.validation_result][row.reason] = row.times
    return counts


def most_active_since(
    connection: Connection, since: datetime, *, limit: int
) -> list[tuple[str, int]]:
    """Return the devices with the most PASS verdicts since a time, and how many."""
    count = func.count().label("times")
    rows = connection.execute(
        select(history.c.device_serial, count)
        .where(history.c.validated_at >= since, history.c.validation_result == "PASS")
        .group_by(history.c.device_serial)
        .order_by(count.desc(), history.c.device_serial)
        .limit(limit)
    )
    return [(row.device_serial, row.times) for row in rows]
