"""The audit trail: one row for each camera token that was judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from birthmark_sma.storage.schema import validation_history as history


@dataclass(frozen=True, slots=True)
class AuditRow:
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
    transaction.execute(
        insert(history),
        [
            {
                "encrypted_nuc_hash": row.encrypted_nuc_hash,
                "table_id": row.table_id,
                "key_index": row.key_index,
                "validation_result": row.validation_result,
                "reason": row.reason,
                "device_serial": row.device_serial,
                "validated_at": row.validated_at,
                "request_ip": row.request_ip,
            }
            for row in rows
        ],
    )


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
