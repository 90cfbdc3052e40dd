"""Renew the certificate in a background thread, as the app chose.

`camera` starts the thread and stops it. The thread must never keep the process alive, and must not
end because of an error.
"""

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from birthmark_sma.device.renewal.renewer import Renewer
from birthmark_sma.errors import DeviceError
from birthmark_sma.http_requests import draw_pause

_FIRST_SECONDS = 10.0
"""The longest pause at the start, so that a fleet that starts together does not ask together."""
_SLICE_SECONDS = 900.0
"""The longest wait. The clock may have been set meanwhile, or the machine may have slept."""
_AGAIN_SECONDS = 60.0
_LONGEST_AGAIN_SECONDS = 3_600.0

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class RenewalThread:
    """Calls a renewer's `step` when it is due, until it is stopped."""

    def __init__(self, renewer: Renewer, wait: Callable[[float], object] | None) -> None:
        """Start the thread. `wait` is that of `Renewal`."""
        self._renewer = renewer
        self._given_wait = wait
        self._stopped = False
        # Not an Event: a signal handler may stop the camera while its own thread is in `stop`, and
        # only the `put` of a SimpleQueue is reentrant.
        self._wake: SimpleQueue[None] = SimpleQueue()
        thread = threading.Thread(target=self._run, name="certificate renewal", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Make the thread end after its current step. Return at once."""
        self._stopped = True
        self._wake.put(None)

    def _run(self) -> None:
        pause, failures = _FIRST_SECONDS * _chance(), 0
        while self._waited(min(pause, _SLICE_SECONDS)):
            try:
                pause, failures = self._renewer.step(), 0
            except Exception as error:
                if self._stopped:
                    return
                pause = draw_pause(
                    failures, first=_AGAIN_SECONDS, longest=_LONGEST_AGAIN_SECONDS, chance=_chance
                )
                failures += 1
                if not isinstance(error, DeviceError):
                    _log.exception("The renewal of the certificate failed")
                elif failures == 1:
                    _log.warning("The renewal of the certificate failed: %s", error)

    def _waited(self, seconds: float) -> bool:
        """Return True after the wait, or False if the thread should end."""
        if self._given_wait is not None:
            self._given_wait(seconds)
        else:
            with contextlib.suppress(Empty):
                self._wake.get(timeout=seconds)
        return not self._stopped
