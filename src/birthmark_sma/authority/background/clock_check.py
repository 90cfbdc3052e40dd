"""Ask the database for the time, and say where this machine's clock is wrong."""

import logging
from datetime import datetime

from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database

_log = logging.getLogger(__name__)


class ClockWatch(BackgroundTask):
    """Asks every few seconds, and logs each new complaint once."""

    name = "clock-watch"
    every_seconds = 10.0

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._told = False

    def work(self, now: datetime) -> None:  # noqa: ARG002 - by the monotonic clock
        """Ask once."""
        self._database.clock.look()
        complaint = self._database.clock.complaint()
        if complaint is not None and not self._told:
            _log.warning(
                "this machine's clock is wrong (%s): let it keep time by NTP. What expires goes by"
                " the database's clock",
                complaint,
            )
        self._told = complaint is not None
