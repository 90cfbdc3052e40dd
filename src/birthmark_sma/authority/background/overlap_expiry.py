"""Background task that deletes the earlier keys of key tables whose overlap has ended.

Started by `authority.py` in every server process. A token under such a key fails from the end of
the overlap on, by the clock, whether its key is deleted yet or not. The deletion keeps the key out
of later backups.
"""

from datetime import datetime, timedelta

from birthmark_sma.authority.key_tables import epochs
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database


class OverlapExpiry(BackgroundTask):
    """Deletes earlier keys every minute, by the database's clock."""

    name = "overlap-expiry"
    every_seconds = 60.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def work(self, now: datetime) -> None:  # noqa: ARG002 - by the database's clock
        """Delete the keys. Raises DatabaseUnavailableError."""
        epochs.delete_ended(self._database, self._database.clock.expired_before(timedelta()))
