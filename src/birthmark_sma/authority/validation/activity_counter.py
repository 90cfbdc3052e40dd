"""Count the activity of devices in memory, and add it to the database every 3 seconds.

A row of `device_activity` for each PASS would cost a third of what PostgreSQL does for a token
(docs/adr/0006). So the writer thread of `service` counts committed batches here, and a background
task adds the counts, one row for each device that was active meanwhile.

The audit rows are the truth: a server that is killed loses up to 3 seconds of these counts. Nothing
may be counted twice, because `background.abuse_detection` judges devices by their counts.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import islice

from birthmark_sma.authority.devices.activity import BusiestDevices, DeviceCount
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import ValidationStore
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.outages.writer_commits import WriterCommits

_AT_ONCE = 2_000
"""Devices in a transaction. On SQLite, no token can be recorded meanwhile."""


class _Day:
    """The counts of one day that are not in the database yet, by device serial."""

    def __init__(self) -> None:
        self.passes: Counter[str] = Counter()
        self.pictures: Counter[str] = Counter()

    def take(self, limit: int) -> dict[str, DeviceCount]:
        """Remove and return the counts of up to `limit` devices."""
        serials = list(islice(self.passes, limit))
        return {
            serial: DeviceCount(self.passes.pop(serial), self.pictures.pop(serial, 0))
            for serial in serials
        }

    def put_back(self, counts: dict[str, DeviceCount]) -> None:
        for serial, count in counts.items():
            self.passes[serial] += count.passes
            self.pictures[serial] += count.pictures


class ActivityCounter(BackgroundTask):
    """The activity of devices as one process has seen it. Safe to use from any thread."""

    name = "activity-counter"
    every_seconds = 3.0
    again_seconds = 3.0

    def __init__(self, database: Database, store: ValidationStore) -> None:
        super().__init__()
        self._store = store
        self._writing = threading.Lock()  # held by the thread that writes
        # Guarded by _writing.
        self._commits = WriterCommits(database)
        self._busiest = BusiestDevices()
        self._lock = threading.Lock()
        self._days: dict[date, _Day] = {}  # guarded by _lock

    def count(self, rows: Sequence[AuditRow]) -> None:
        """Count the rows of a batch that was committed. All of them have the same time."""
        passed = [row for row in rows if row.validation_result == Verdict.PASS]
        if not passed:
            return
        with self._lock:
            day = self._days.setdefault(rows[0].validated_at.astimezone(UTC).date(), _Day())
            day.passes.update(row.device_serial or "" for row in passed)
            day.pictures.update(
                row.device_serial or ""
                for row in passed
                if row.caller is not None and row.repeat is None
            )

    def work(self, now: datetime) -> None:  # noqa: ARG002 - the rows have their times
        """Add all counts to the database. Raises DatabaseUnavailableError."""
        with self._writing:
            while taken := self._take():
                self._add(*taken)

    def _take(self) -> tuple[date, dict[str, DeviceCount]] | None:
        with self._lock:
            for day, counts in list(self._days.items()):
                if counts.passes:
                    return day, counts.take(_AT_ONCE)
                del self._days[day]
        return None

    def _add(self, day: date, counts: dict[str, DeviceCount]) -> None:
        def attempt() -> None:
            with self._commits.write(QUICK_SECONDS) as transaction:
                # Before this transaction writes: the list in memory must never hold uncommitted
                # rows.
                self._busiest.refresh(transaction, day)
                least = self._busiest.least
                risen = self._store.add_activity(transaction, day, counts, least=least)
                self._busiest.admit(transaction, risen)

        try:
            retry(attempt)
        except BaseException as error:
            if not (isinstance(error, DatabaseUnavailableError) and error.may_have_committed):
                with self._lock:
                    self._days.setdefault(day, _Day()).put_back(counts)
            raise
