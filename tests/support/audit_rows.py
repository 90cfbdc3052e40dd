"""Audit rows for tests: whole ones written as they are, and judged ones from reasons."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, insert

from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.schema import validation_history


def append_rows(transaction: Connection, rows: Sequence[AuditRow]) -> None:
    """Write audit rows of any times, without counting them."""
    transaction.execute(insert(validation_history), [row._asdict() for row in rows])


def judged(at: datetime, verdicts: Iterable[tuple[Reason, str | None]]) -> list[AuditRow]:
    """The rows of a batch: the reason and the device of each token."""
    return [
        AuditRow(bytes(48), 1, 1, reason.verdict.value, reason.value, serial, at, None)
        for reason, serial in verdicts
    ]
