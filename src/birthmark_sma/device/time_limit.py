"""End a request after a time, whatever the other side does.

A socket's own timeout bounds the wait for the next byte, so that whoever sends a byte now and then
holds a request up for ever. Here the connection is shut down once the time is over, and whoever
reads finds it at its end: in the head of an answer, in its body, and amid a TLS handshake.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any, Self


class TimeLimit:
    """For one request, on a connection that is made for it.

    with TimeLimit(80) as limit, client.stream(..., extensions={"trace": limit.note}) as response:

    `over` says whether the time was up. Only to look the host's name up may take longer.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Hear from the HTTP client, by its `trace` extension, which connection it has made."""
        if event.endswith(".connect_tcp.complete"):
            with self._lock:
                self._forget()
                # A descriptor of its own: the client's may be closed, and its number another
                # file's, when the time is over.
                self._connection = info["return_value"].get_extra_info("socket").dup()
                self._shut_down_if_over()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._forget()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._shut_down_if_over()

    def _shut_down_if_over(self) -> None:
        if self.over and self._connection is not None:
            with contextlib.suppress(OSError):  # the other side was faster
                self._connection.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
