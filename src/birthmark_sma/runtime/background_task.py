"""A thread that does one thing again and again while the authority runs."""

import logging
import threading
from abc import ABC, abstractmethod
from datetime import UTC, datetime

from birthmark_sma.errors import DatabaseUnavailableError

_TRY_AGAIN_SECONDS = 60.0
_LEAVING_SECONDS = 1.0
"""Whoever waits for a database longer than this is left behind: the process ends all the same."""

_log = logging.getLogger(__name__)


class BackgroundTask(ABC):
    """Does its work at once and then every so often, until it is closed.

    Every process of a server runs one of each kind: what one has done the others find done.
    Whatever goes wrong is logged and tried again in a minute.
    """

    name: str
    """What the thread and the log call it."""
    every_seconds: float

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Begin. Only a server does: a single command should not wait for this."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; return at once."""
        self._closing.set()

    def close(self) -> None:
        """Stop after the step under way, which is a short one; harmless where nothing was begun."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(_LEAVING_SECONDS)

    @abstractmethod
    def work(self, now: datetime) -> None:
        """Do it once. `now` is this machine's time; `pause` between steps says when to stop."""

    def pause(self, seconds: float) -> bool:
        """Wait between two steps of the work; True says that it should stop where it is."""
        return self._closing.wait(seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._closing.wait(self.every_seconds if self._worked() else _TRY_AGAIN_SECONDS)

    def _worked(self) -> bool:
        try:
            self.work(datetime.now(UTC))
        except DatabaseUnavailableError as error:
            _log.warning("the %s waits for the database: %s", self.name, error.advice or error)
        except Exception:  # a fault here must not end the thread: tomorrow needs it too
            _log.exception("the %s failed", self.name)
        else:
            return True
        return False
