"""Make audit rows for tests and insert them into the audit log."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, insert

from birthmark_sma.authority.devices.activity import BusiestDevices, DeviceCount
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import ValidationStore
from birthmark_sma.authority.validation.store_postgresql import PostgresqlStore
from birthmark_sma.authority.validation.store_sqlite import SqliteStore
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.portable_sql import choose
from birthmark_sma.storage.schema.validations import validation_history


class AuditWriter:
    """Writes audit rows and all counters as one server does, on the database of its first use."""

    def __init__(self) -> None:
        self._store: ValidationStore | None = None
        self._busiest = BusiestDevices()

    def write(self, transaction: Connection, rows: Sequence[AuditRow]) -> None:
        """Write and count one or more audit rows of the same day, in one transaction."""
        if self._store is None:
            postgresql: ValidationStore = PostgresqlStore()
            self._store = choose(transaction, postgresql=postgresql, sqlite=SqliteStore())
        day = rows[0].validated_at.date()
        self._busiest.refresh(transaction, day)
        self._store.write(transaction, rows)
        passed = [row for row in rows if row.validation_result == "PASS"]
        pictures = [row for row in passed if row.caller is not None and row.repeat is None]
        passes, taken = (
            Counter(row.device_serial or "" for row in each) for each in (passed, pictures)
        )
        counts = {serial: DeviceCount(passes[serial], taken[serial]) for serial in passes}
        least = self._busiest.least
        risen = self._store.add_activity(transaction, day, counts, least=least)
        self._busiest.admit(transaction, risen)


def append_rows(transaction: Connection, rows: Sequence[AuditRow]) -> None:
    """Insert audit rows with any time. The counters stay as they are."""
    transaction.execute(insert(validation_history), [row._asdict() for row in rows])


def judged(at: datetime, verdicts: Iterable[tuple[Reason, str | None]]) -> list[AuditRow]:
    """Return the audit rows of a batch at time `at`, from the reason and device of each token."""
    return [
        AuditRow(bytes(48), 1, 1, reason.verdict.value, reason.value, serial, at, None)
        for reason, serial in verdicts
    ]
