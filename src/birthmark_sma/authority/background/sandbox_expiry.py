"""What a sandbox was given is gone after an hour, by itself."""

from datetime import datetime, timedelta

from birthmark_sma.authority.background.retention import prune
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.provisioning import idempotency_store
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

LIFETIME = timedelta(hours=1)
_STEP_ROWS = 500


class ShortLife(BackgroundTask):
    """Takes out devices, what was revoked, first answers and the audit trail, once they are old."""

    name = "sandbox-short-life"
    every_seconds = 60.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def work(self, now: datetime) -> None:
        """Take out what is older than an hour. A clock that was wrong costs a sandbox nothing."""
        before = now - LIFETIME
        deleted = _STEP_ROWS
        while deleted == _STEP_ROWS:
            with self._database.write() as transaction:
                deleted = device_store.delete_older(transaction, before, limit=_STEP_ROWS)
            if self.pause(0):
                return
        with self._database.write() as transaction:
            ca_store.forget_revocations(transaction, before)
            idempotency_store.forget_before(transaction, before)
        prune(self._database, before, self.pause)
