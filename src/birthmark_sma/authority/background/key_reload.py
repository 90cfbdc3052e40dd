"""Notice twice a second what a person changes while the authority runs: keys of either kind."""

import logging
import time
from datetime import datetime

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

_NOTE_USES_SECONDS = 10.0

_log = logging.getLogger(__name__)


class KeyReloader(BackgroundTask):
    """Follows a rotation of the key-encryption key, and changes of access keys.

    Beside that it writes down when access keys were last used, now and then and at the end.
    """

    name = "key-watch"
    every_seconds = 0.5

    def __init__(
        self, database: Database, keks: KeyEncryptionKeys, key_cache: AccessKeyCache
    ) -> None:
        super().__init__()
        self._database = database
        self._keks = keks
        self._key_cache = key_cache
        self._noted_at = time.monotonic()

    def close(self) -> None:
        """Stop looking, and write down what was used last."""
        super().close()
        try:
            self._key_cache.note_uses(self._database)
        except DatabaseUnavailableError as error:
            _log.warning("when access keys were last used is not written down: %s", error)

    def work(self, now: datetime) -> None:  # noqa: ARG002  whatever the time is
        """Look. An outage is told by whoever needs the database, and must not mean a long pause."""
        try:
            with self._database.read() as connection:
                self._key_cache.poll(connection)
                self._keks.poll(connection)
            if time.monotonic() - self._noted_at >= _NOTE_USES_SECONDS:
                self._key_cache.note_uses(self._database)
                self._noted_at = time.monotonic()
        except DatabaseUnavailableError:
            return
