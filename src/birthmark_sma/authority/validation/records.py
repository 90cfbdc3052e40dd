"""The row of the audit log: one for each camera token that was judged.

`validation.audit_writer` writes the rows, `validation.audit_search` finds them.
"""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from birthmark_sma.storage.schema import validation_history as history


class AuditRow(NamedTuple):
    """One judged camera token. The order of the fields is the order of the columns in the INSERT.

    `device_serial` is set if the device is known, also for a FAIL. `caller` is the id of the
    caller's access key. `repeat` is the kind of repeat, or None for the first time.
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
    """Return the number of audit rows. This scans the whole audit log, so it is slow."""
    return connection.execute(select(func.count()).select_from(history)).scalar_one()
