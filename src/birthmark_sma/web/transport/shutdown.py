"""End the process in time after a stop signal.

`web.server` calls `end_in_time` in each process. The three limits below keep every stop shorter
than 10 seconds.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

DRAIN_SECONDS = 6
"""The time (seconds) that accepted requests have to finish after a stop signal."""
WORKER_SECONDS = 8.5
"""The time (seconds) after which a process exits that got a stop signal, even if work is left."""
SUPERVISOR_SECONDS = 9.3
"""The time (seconds) after which the supervisor kills its workers and exits. It is longer than
WORKER_SECONDS because the supervisor gets the signal first and passes it on half a second later."""

_LEFT = "Stopped with work under way that did not end in time. What was answered is recorded."
_LOG_SECONDS = 0.2  # for the last line of the log; then the process exits with or without it

_log = logging.getLogger(__name__)


def end_in_time(seconds: float, last_act: Callable[[], None] = lambda: None) -> None:
    """Make SIGTERM and SIGINT end this process with status 1 after `seconds`.

    The present signal handlers still run, and normally end the process sooner. This limit is for
    threads that wait for a database that does not answer: only the end of the process ends them.
    Nothing is lost, as work that was not committed was never answered. `last_act` runs just before.

    It does nothing outside the main thread, as Python handles signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def leave() -> None:
        time.sleep(seconds)
        last_act()
        # In a thread of its own: writing to a pipe that is not read blocks, and must not keep the
        # process alive.
        threading.Thread(target=_log.error, args=(_LEFT,), daemon=True).start()
        time.sleep(_LOG_SECONDS)
        os._exit(1)

    watch = threading.Thread(target=leave, name="leaving", daemon=True)

    def chain(signum: int) -> None:
        handler = signal.getsignal(signum)  # uvicorn's, which starts the graceful stop

        def handle(number: int, frame: FrameType | None) -> None:
            if not watch.is_alive():  # the time runs from the first signal
                watch.start()
            if callable(handler):
                handler(number, frame)

        signal.signal(signum, handle)

    for each in (signal.SIGTERM, signal.SIGINT):
        chain(each)
