"""The base class of background tasks: a thread that repeats one job while the server runs.

The tasks are in `authority.background`, `authority.ca` and `authority.key_tables`;
`authority.authority` starts and closes them.
"""

import logging
import threading
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from time import monotonic

from birthmark_sma.errors import DatabaseUnavailableError

_WARN_AGAIN_SECONDS = 60.0
_LEAVING_SECONDS = 1.0
"""Seconds that `close` waits for a task. A task that still waits for the database is then left
behind; its thread is a daemon thread, so the process can end."""

_log = logging.getLogger(__name__)


class BackgroundTask(ABC):
    """Runs `work` at once and then every `every_seconds` seconds, until it is closed.

    Each process of a server runs one task of each kind, so `work` must be safe to run in several
    processes: one does the job, and the others find it done. Errors are logged and the work is
    retried after `again_seconds`.
    """

    name: str
    """The name of the task in the log, and of its thread."""
    every_seconds: float
    """The pause in seconds after a run without an error."""
    again_seconds = 60.0
    """The pause in seconds after an error."""

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._warns_at = 0.0  # no earlier than this, in seconds of `monotonic`
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread. Only servers call this: commands run without background tasks."""
        self._thread.start()

    def stop(self) -> None:
        """Make the task end after its current step. Returns at once."""
        self._closing.set()

    def close(self) -> None:
        """Stop, and wait up to 1 second for the current step. Does nothing if not started."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(_LEAVING_SECONDS)

    @abstractmethod
    def work(self, now: datetime) -> None:
        """Do the job once. `now` is this machine's time.

        Call `pause` between steps and return if it returns True.
        """

    def pause(self, seconds: float) -> bool:
        """Wait between two steps of the work; return True if the work should stop now."""
        return self._closing.wait(seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._closing.wait(self.every_seconds if self._worked() else self.again_seconds)

    def _worked(self) -> bool:
        try:
            self.work(datetime.now(UTC))
        except DatabaseUnavailableError as error:
            if monotonic() >= self._warns_at:
                self._warns_at = monotonic() + _WARN_AGAIN_SECONDS
                _log.warning("the %s waits for the database: %s", self.name, error.advice or error)
        except Exception:  # an error must not end the thread: the next run may succeed
            _log.exception("the %s failed", self.name)
        else:
            return True
        return False
