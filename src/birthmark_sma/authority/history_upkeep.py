"""Keep what grows in order while the authority runs: partitions ahead, and what is too old."""

import logging
from datetime import datetime

from birthmark_sma.authority.chore import Chore
from birthmark_sma.authority.first_answers import IDEMPOTENCY_PERIOD
from birthmark_sma.authority.retention import oldest_kept, prune
from birthmark_sma.storage import idempotency, partitions
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database

_log = logging.getLogger(__name__)


class HistoryUpkeep(Chore):
    """Tends audit trail and first answers every hour. Processes take turns by themselves."""

    name = "history-upkeep"
    every_seconds = 3600.0

    def __init__(self, database: Database, retention_days: int | None) -> None:
        super().__init__()
        self._database = database
        self._retention_days = retention_days

    def work(self, now: datetime) -> None:
        """Make the partitions that are missing, and take out what is older than is kept."""
        with self._database.write() as transaction:
            made = partitions.make_ahead(transaction, now.date())
            idempotency.forget_before(transaction, now - IDEMPOTENCY_PERIOD)
        if made:
            _log.info("partitions were made: %s", ", ".join(made))
        if self._retention_days is None:
            return
        # A machine whose clock runs years ahead must not take everybody's history with it.
        with self._database.read() as connection:
            now = min(now, database_time(connection))
        pruned = prune(self._database, oldest_kept(self._retention_days, now), self.pause)
        if pruned.partitions or pruned.rows:
            _log.info("retention: %d partitions, %d rows", len(pruned.partitions), pruned.rows)
