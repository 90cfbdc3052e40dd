"""Background task that reloads changed access keys, KEKs, CAs and key tables twice a second.

Started by `authority.py` in every server process, so that a revoked access key is refused, and a
rotated key-encryption key (KEK) or a new intermediate is used, within a second. Validation and
provisioning compare the generation of the key tables themselves; this task only saves them the time
of reading the tables.
"""

import contextlib
import logging
import time
from datetime import datetime

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.ca.issuers import OpenIssuers
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.errors import (
    AuthorityError,
    DatabaseUnavailableError,
    KeyEncryptionKeyChangedError,
)
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS

_NOTE_USES_SECONDS = 10.0

_log = logging.getLogger(__name__)


class KeyReloader(BackgroundTask):
    """Reloads access keys and follows rotations of KEK and key tables, every 0.5 seconds.

    It also stores when access keys were last used, every 10 seconds and when it is closed.
    """

    name = "key-watch"
    every_seconds = 0.5

    def __init__(
        self,
        database: Database,
        keks: KeyEncryptionKeys,
        key_cache: AccessKeyCache,
        issuers: OpenIssuers,
        table_cache: KeyTableCache,
    ) -> None:
        super().__init__()
        self._database = database
        self._keks = keks
        self._table_cache = table_cache
        self._key_cache = key_cache
        self._issuers = issuers
        self._noted_at = time.monotonic()

    def close(self) -> None:
        """Stop the task, and store the last uses. Log a warning if the database is unavailable."""
        super().close()
        try:
            self._key_cache.note_uses(self._database)
        except DatabaseUnavailableError as error:
            _log.warning("the last uses of access keys could not be stored: %s", error)

    def work(self, now: datetime) -> None:  # noqa: ARG002  whatever the time is
        """Poll all kinds of keys, and store the last uses if that is due.

        Ignore an unavailable database, and a new intermediate's key that is wrapped under a
        key-encryption key that this process does not have yet: requests report both. Raising it
        would make `BackgroundTask` wait for 60 seconds, in which a revoked key would still be
        accepted.
        """
        try:
            with self._database.read(QUICK_SECONDS) as connection:
                self._key_cache.poll(connection)
                self._keks.poll(connection)
                self._issuers.poll(connection)
                # Tables that cannot be opened are reported by validations. Raising it here would
                # delay the next poll of the access keys, as above.
                with contextlib.suppress(AuthorityError):
                    self._table_cache.poll(connection)
            if time.monotonic() - self._noted_at >= _NOTE_USES_SECONDS:
                self._key_cache.note_uses(self._database)
                self._noted_at = time.monotonic()
        except (DatabaseUnavailableError, KeyEncryptionKeyChangedError):
            return
