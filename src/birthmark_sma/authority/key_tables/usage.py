"""A background task that counts the devices and the camera tokens of each key table.

`authority.authority` starts it; the dashboard shows the counts. Tokens are counted by whole
minutes, oldest first, with a bounded number of rows a step. The last two minutes are not counted
yet, because rows of a past minute may still be uncommitted. Devices are counted all at once; the
longer that takes, the less often it is done. This task must never delay a validation.
"""

import time
from datetime import datetime, timedelta

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables import usage_store
from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.key_table import TABLES_PER_DEVICE
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time

LEFT_ALONE = timedelta(minutes=2)
"""The age that a minute must have to be counted: younger rows may still be uncommitted."""

_ROWS = 50_000  # audit rows of one step, unless a single minute has more
_PAUSE_SECONDS = 0.5  # between two steps, for other work
_TIMES_AS_LONG = 200
"""The time between two counts of devices, as a multiple of the duration of a count.

So counting devices takes at most 1/200 of a core's time."""


class KeyTableUsage(BackgroundTask):
    """Counts every ten seconds. Every process runs one; the database decides which of them counts.

    It overrides `name`, `every_seconds` and `work` of BackgroundTask.
    """

    name = "table-counting"
    every_seconds = 10.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def work(self, now: datetime) -> None:
        """Count the devices, then all tokens up to two minutes ago."""
        with self._database.read() as connection:
            # The earlier of both clocks: a clock that is ahead must not count an unfinished minute.
            now = min(now, database_time(connection))
        self._count_devices(now)
        while self._count_tokens(now) and not self.pause(_PAUSE_SECONDS):
            pass

    def _count_tokens(self, now: datetime) -> bool:
        """Count one step of tokens; return False if nothing is left or another process counted."""
        with self._database.read() as connection:
            counting = usage_store.find_counting(connection)
            until = floor_to_minute(now - LEFT_ALONE)
            minutes = usage_store.next_minutes(connection, counting, until, _ROWS)
            if minutes is None:
                return False
            begins, ends = minutes
            counted = usage_store.count_tokens(connection, begins, ends)
        # A short transaction of its own: the count above reads up to 50,000 rows without locks.
        return self._database.transact(
            lambda transaction: usage_store.add_tokens(
                transaction, counted, before=counting, until=ends
            )
        )

    def _count_devices(self, now: datetime) -> None:
        with self._database.read() as connection:
            counting = usage_store.find_counting(connection)
            assigned = usage_store.count_assigned(connection)
            if assigned == TABLES_PER_DEVICE * device_store.count_devices(connection):
                return  # every registered device is already counted
        if counting.devices_at is not None and counting.devices_seconds is not None:
            rest = timedelta(seconds=counting.devices_seconds * _TIMES_AS_LONG)
            if counting.devices_at <= now < counting.devices_at + rest:
                return
        # Claim before counting, so that only one process reads the whole register.
        if not self._database.transact(
            lambda transaction: usage_store.claim_devices(transaction, counting, now)
        ):
            return
        begun = time.monotonic()
        with self._database.read(LONG_SECONDS) as connection:
            counted = usage_store.count_assignments(connection)
            table_ids = key_table_store.list_table_ids(connection)
        seconds = time.monotonic() - begun
        self._database.transact(
            lambda transaction: usage_store.put_devices(transaction, table_ids, counted, seconds)
        )
