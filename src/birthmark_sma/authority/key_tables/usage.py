"""Count for each key table its devices, and the camera tokens that named it, beside all else.

Tokens are counted by whole minutes, oldest first, a bounded number of rows a step. Two minutes are
left alone: rows of a minute that has passed may still be on their way to the database. Devices are
counted all at once, and the more seldom the longer that takes.
"""

import time
from datetime import datetime, timedelta

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables import usage_store
from birthmark_sma.authority.validation.audit_counters import floor_to_minute
from birthmark_sma.protocol.key_table import TABLES_PER_DEVICE
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database

LEFT_ALONE = timedelta(minutes=2)

_ROWS = 50_000
_PAUSE_SECONDS = 0.5
_TIMES_AS_LONG = 200
"""Counting devices takes at most this part of a core's time."""


class TableCounting(BackgroundTask):
    """Counts every few seconds. Processes take turns by themselves."""

    name = "table-counting"
    every_seconds = 10.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def work(self, now: datetime) -> None:
        """Count what has come."""
        with self._database.read() as connection:
            now = min(now, database_time(connection))
        self._count_devices(now)
        while self._count_tokens(now) and not self.pause(_PAUSE_SECONDS):
            pass

    def _count_tokens(self, now: datetime) -> bool:
        """Count a step; False where nothing is left to count."""
        with self._database.read() as connection:
            counting = usage_store.find_counting(connection)
            until = floor_to_minute(now - LEFT_ALONE)
            minutes = usage_store.next_minutes(connection, counting, until, _ROWS)
            if minutes is None:
                return False
            begins, ends = minutes
            counted = usage_store.count_tokens(connection, begins, ends)
        with self._database.write() as transaction:
            return usage_store.add_tokens(transaction, counted, before=counting, until=ends)

    def _count_devices(self, now: datetime) -> None:
        with self._database.read() as connection:
            counting = usage_store.find_counting(connection)
            assigned = usage_store.count_assigned(connection)
            if assigned == TABLES_PER_DEVICE * device_store.count_devices(connection):
                return
        if counting.devices_at is not None and counting.devices_seconds is not None:
            rest = timedelta(seconds=counting.devices_seconds * _TIMES_AS_LONG)
            if counting.devices_at <= now < counting.devices_at + rest:
                return
        with self._database.write() as transaction:
            if not usage_store.claim_devices(transaction, counting, now):
                return
        begun = time.monotonic()
        with self._database.read() as connection:
            counted = usage_store.count_assignments(connection)
            table_ids = key_table_store.list_table_ids(connection)
        with self._database.write() as transaction:
            seconds = time.monotonic() - begun
            usage_store.put_devices(transaction, table_ids, counted, seconds)
