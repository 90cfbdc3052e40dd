"""Background task that creates partitions of the audit trail, and prunes and coarsens old rows.

Started by `authority.py` in every server process. It must go by the database's clock only: a wrong
clock of one machine must not delete anything.
"""

import logging
from datetime import datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.background.privacy.coarsening import coarsen
from birthmark_sma.authority.background.retention import midnight, prune
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.idempotency.sealing import IDEMPOTENCY_PERIOD
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages import commit_marks
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.postgresql.server_role import may_change_trail, may_delete_trail

_MARKS_ARE_KEPT = timedelta(days=1)  # a mark is looked up within seconds

_log = logging.getLogger(__name__)


class AuditUpkeep(BackgroundTask):
    """Maintains the audit trail, the stored first answers and the commit marks, every hour.

    Several processes may run it at once: an advisory lock guards the creation of partitions, and
    deletions skip the rows that another process has locked.
    """

    name = "history-upkeep"
    every_seconds = 3600.0

    def __init__(
        self,
        database: Database,
        retention_days: int | None,
        keks: KeyEncryptionKeys | None,
        privacy_days: int | None = None,
    ) -> None:
        super().__init__()
        self._database = database
        self._retention_days = retention_days
        self._privacy_days = privacy_days
        self._keks = keks
        self._coarse_until: datetime | None = None  # what this process need not look at again
        self._told: set[str] = set()

    def work(self, now: datetime) -> None:  # noqa: ARG002 - the database's time alone counts
        """Create partitions, delete expired first answers and commit marks, prune the audit trail.

        First answers expire after 24 hours. The audit trail is pruned only if a retention is set,
        and coarsened only if the days of privacy are set.
        """

        def prepare(transaction: Connection) -> list[str]:
            made = partitions.create_future_partitions(
                transaction, database_time(transaction).date()
            )
            idempotency_store.forget_before(
                transaction, self._database.clock.expired_before(IDEMPOTENCY_PERIOD)
            )
            commit_marks.forget_before(
                transaction, self._database.clock.expired_before(_MARKS_ARE_KEPT)
            )
            return made

        made = self._database.transact(prepare)
        if made:
            _log.info("partitions were made: %s", ", ".join(made))
        with self._database.read() as connection:
            may_delete, may_change = may_delete_trail(connection), may_change_trail(connection)
        if self._retention_days is not None:
            if may_delete:
                self._prune(self._midnight_ago(self._retention_days))
            else:
                self._tell("delete audit rows", "sma history prune")
        if self._privacy_days is not None:
            if may_change:
                self._coarsen(self._midnight_ago(self._privacy_days))
            else:
                self._tell("coarsen audit rows", "sma history coarsen")

    def _midnight_ago(self, days: int) -> datetime:
        return midnight(self._database.clock.expired_before(timedelta(days=days)))

    def _tell(self, what: str, command: str) -> None:
        """Log once that this server may not do something."""
        if command not in self._told:
            _log.warning(
                "this server may not %s: let a timer run %s, as the owner of the database",
                what,
                command,
            )
        self._told.add(command)

    def _prune(self, before: datetime) -> None:
        pruned = prune(self._database, before, self.pause, keks=self._keks)
        if pruned.partitions or pruned.rows:
            _log.info("retention: %d partitions, %d rows", len(pruned.partitions), pruned.rows)

    def _coarsen(self, before: datetime) -> None:
        done = coarsen(
            self._database, before, self.pause, keks=self._keks, since=self._coarse_until
        )
        if done.is_done:
            self._coarse_until = before
        if done.rows:
            _log.info("privacy: %d rows have no exact time and address any more", done.rows)
