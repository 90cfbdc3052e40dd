"""Background task that compares this machine's clock with the database's and logs a difference.

Started by `authority.py` in every server process.
"""

import logging
from datetime import datetime

from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

_log = logging.getLogger(__name__)


class ClockCheck(BackgroundTask):
    """Checks the clock every 10 seconds, and logs once when the clock becomes wrong."""

    name = "clock-watch"
    every_seconds = 10.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._told = False

    def work(self, now: datetime) -> None:  # noqa: ARG002 - by the monotonic clock
        """Query the database's clock, and log a warning if the clocks differ and did not before.

        Raises DatabaseUnavailableError.
        """
        self._database.clock.look()
        complaint = self._database.clock.complaint()
        if complaint is not None and not self._told:
            _log.warning(
                "this machine's clock is wrong (%s). Synchronise it by NTP. Expiry goes by the"
                " database's clock",
                complaint,
            )
        self._told = complaint is not None
