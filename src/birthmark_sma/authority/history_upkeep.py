"""Keep the audit trail in order while the authority runs: partitions ahead, and retention."""

import logging
import threading
from datetime import UTC, datetime

from birthmark_sma.authority.retention import oldest_kept, prune
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage import partitions
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database

_EVERY_SECONDS = 3600.0
_TRY_AGAIN_SECONDS = 60.0
_LEAVING_SECONDS = 5.0

_log = logging.getLogger(__name__)


class HistoryUpkeep:
    """A thread that tends the audit trail at once and then every hour, until it is closed.

    Every process of a server runs one: they take turns by themselves, and what one has done the
    others find done. Whatever goes wrong is logged and tried again in a minute.
    """

    def __init__(self, database: Database, retention_days: int | None) -> None:
        self._database = database
        self._retention_days = retention_days
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history-upkeep", daemon=True)

    def start(self) -> None:
        """Begin. Only a server does: a single command should not wait for this."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the step under way, which is a short one; harmless where nothing was begun."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_LEAVING_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._closing.wait(_EVERY_SECONDS if self._tended() else _TRY_AGAIN_SECONDS)

    def _tended(self) -> bool:
        try:
            self._tend(datetime.now(UTC))
        except DatabaseUnavailableError as error:
            _log.warning("the audit trail waits to be tended: %s", error.advice or error)
        except Exception:  # a fault here must not end the thread: tomorrow needs its partition
            _log.exception("the audit trail could not be tended")
        else:
            return True
        return False

    def _tend(self, now: datetime) -> None:
        with self._database.write() as transaction:
            made = partitions.make_ahead(transaction, now.date())
        if made:
            _log.info("partitions were made: %s", ", ".join(made))
        if self._retention_days is None:
            return
        # A machine whose clock runs years ahead must not take everybody's history with it.
        with self._database.read() as connection:
            now = min(now, database_time(connection))
        pruned = prune(self._database, oldest_kept(self._retention_days, now), self._closing.wait)
        if pruned.partitions or pruned.rows:
            _log.info("retention: %d partitions, %d rows", len(pruned.partitions), pruned.rows)
