"""What a sandbox was given is gone after an hour, by itself."""

from datetime import datetime, timedelta

from birthmark_sma.authority.chore import Chore
from birthmark_sma.authority.retention import prune
from birthmark_sma.storage import certificates, devices, idempotency
from birthmark_sma.storage.engine import Database

LIFETIME = timedelta(hours=1)
_STEP_ROWS = 500


class ShortLife(Chore):
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
                deleted = devices.delete_older(transaction, before, limit=_STEP_ROWS)
            if self.pause(0):
                return
        with self._database.write() as transaction:
            certificates.forget_revocations(transaction, before)
            idempotency.forget_before(transaction, before)
        prune(self._database, before, self.pause)
