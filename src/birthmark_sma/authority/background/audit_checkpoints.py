"""Background task that signs the heads of the audit chains each minute.

Started by `authority.py` in every server process. It must never sign
what it did not read from the database, and never repair a chain.
"""

import logging
from datetime import datetime, timedelta
from functools import partial

from birthmark_sma.authority.audit_chain import checkpoints, keys
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.errors import AuditTrailChangedError
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

_LEAST_AGE = timedelta(seconds=50)  # each process of a server tries it once a minute

_log = logging.getLogger(__name__)


class AuditCheckpoints(BackgroundTask):
    """Makes a checkpoint if a chain has grown. Of all processes, one does it each minute."""

    name = "audit-checkpoints"
    every_seconds = 60.0

    def __init__(self, database: Database, keks: KeyEncryptionKeys) -> None:
        super().__init__()
        self._database = database
        self._keks = keks

    def work(self, now: datetime) -> None:  # noqa: ARG002  the database's time counts
        """Create the key if there is none, and make a checkpoint.

        Log an error and make none if the checkpoints in the database do not fit each other.
        """
        keys.ensure_key(self._database, self._keks)
        make = partial(checkpoints.make_checkpoint, keks=self._keks, least_age=_LEAST_AGE)
        try:
            self._database.transact(make)
        except AuditTrailChangedError as error:
            _log.error("no checkpoint was made. %s", error)
