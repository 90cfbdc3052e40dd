"""The audit trail: one row for each camera token that was judged. `storage.trail` writes it."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.schema import validation_history as history


class AuditRow(NamedTuple):
    """One judged camera token. `device_serial` is set wherever the device is known, FAIL or not.

    `caller` is the id of the access key that was shown; `repeat`, what kind of repetition it was.
    """

    encrypted_nuc_hash: bytes
    table_id: int
    key_index: int
    validation_result: str
    reason: str
    device_serial: str | None
    validated_at: datetime
    request_ip: str | None
    caller: str | None = None
    repeat: str | None = None


def count_rows(connection: Connection) -> int:
    """Return how many rows there are, by reading all of them."""
    return connection.execute(select(func.count()).select_from(history)).scalar_one()
