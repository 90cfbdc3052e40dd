"""Leave: a request when its caller has left, and the process in time when it is told to stop."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma.errors import ShuttingDownError
from birthmark_sma.web.problems import error_response

DRAIN_SECONDS = 6
"""The time in which accepted requests are answered once the server is told to stop."""
WORKER_SECONDS = 8.5
"""The time after which a process ends that was told to stop, whatever is under way in it."""
SUPERVISOR_SECONDS = 9.3
"""The time after which the parent of several processes ends them and itself: it hears of its
signal first."""

CALLER_LEFT = "caller_left"
"""The key in the scope of a request by which the protocol says that its caller has left."""

_LEFT = "Stopped with work under way that did not end in time. What was answered is recorded."
_LOG_SECONDS = 0.2

_log = logging.getLogger(__name__)


class Cancellable:
    """Ends a request quietly that the protocol or the server cancels.

    The protocol does when the caller has left, the server when it has waited long enough.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; say 503 where a caller still waits who has heard nothing."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if scope["type"] != "http" or begun or CALLER_LEFT in scope:
                return
            await error_response(Request(scope), ShuttingDownError())(scope, receive, send)


def end_in_time(seconds: float, last_act: Callable[[], None] = lambda: None) -> None:
    """Have SIGTERM and SIGINT end this process after so many seconds, whatever is under way.

    Their handlers run as before, and mostly end it sooner. A database that does not answer holds
    threads that nothing ends but the end of the process; what was not committed never happened, and
    was never answered. In the main thread only: elsewhere nobody hears signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def leave() -> None:
        time.sleep(seconds)
        last_act()
        # In a thread of its own: a log that nobody reads must not keep the process here.
        threading.Thread(target=_log.error, args=(_LEFT,), daemon=True).start()
        time.sleep(_LOG_SECONDS)
        os._exit(1)

    watch = threading.Thread(target=leave, name="leaving", daemon=True)

    def chain(signum: int) -> None:
        handler = signal.getsignal(signum)

        def handle(number: int, frame: FrameType | None) -> None:
            if not watch.is_alive():
                watch.start()
            if callable(handler):
                handler(number, frame)

        signal.signal(signum, handle)

    for each in (signal.SIGTERM, signal.SIGINT):
        chain(each)
