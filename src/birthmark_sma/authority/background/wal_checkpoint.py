"""Background task that keeps SQLite's write-ahead log short.

Started by `authority.py` in every server process on SQLite. A program that reads for long, such as
a backup, keeps SQLite from emptying the log: at full load it grows by 5 MB a second. After such a
reader has ended, this task truncates the log, also if nothing is written any more. It must never
make a validation wait for a reader.
"""

from datetime import datetime

from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database


class WalCheckpoint(BackgroundTask):
    """Truncates a log of more than 16 MiB every 5 seconds, unless a reader needs it."""

    name = "wal-checkpoint"
    every_seconds = 5.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def work(self, now: datetime) -> None:  # noqa: ARG002 - the log has a size and no age
        """Truncate the log if it is too long. Raises DatabaseUnavailableError."""
        self._database.shrink_wal()
