"""Background task of a sandbox that deletes all data older than an hour.

Started by `authority.py` in a sandbox only. It must never run in another authority: a deleted
device could be provisioned again.
"""

from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.audit_chain import pruning
from birthmark_sma.authority.audit_chain.batches import floor_to_hour
from birthmark_sma.authority.audit_chain.keys import ensure_key
from birthmark_sma.authority.background.retention import prune
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

LIFETIME = timedelta(hours=1)
_STEP_ROWS = 500


class SandboxExpiry(BackgroundTask):
    """Deletes old devices, revocations, first answers, acts and audit rows, every minute."""

    name = "sandbox-short-life"
    every_seconds = 60.0

    def __init__(self, database: Database, keks: KeyEncryptionKeys | None) -> None:
        super().__init__()
        self._database = database
        self._keks = keks

    def work(self, now: datetime) -> None:
        """Delete everything that is older than an hour.

        Go by this machine's clock and not by the database's: no data of a sandbox is worth keeping
        if the clock is wrong.
        """
        before = now - LIFETIME
        deleted = _STEP_ROWS
        while deleted == _STEP_ROWS:
            deleted = self._database.transact(
                partial(device_store.delete_older, before=before, limit=_STEP_ROWS)
            )
            if self.pause(0):
                return

        def forget(transaction: Connection) -> None:
            if self._keks is not None:
                pruning.permit(transaction, self._keks, before, acts=True)
            ca_store.forget_revocations(transaction, before)
            # The batch of an act has only its hour.
            trail.forget_before(transaction, floor_to_hour(before))
            idempotency_store.forget_before(transaction, before)

        if self._keks is not None:
            ensure_key(self._database, self._keks)
        self._database.transact(forget)
        prune(self._database, before, self.pause, keks=self._keks)
