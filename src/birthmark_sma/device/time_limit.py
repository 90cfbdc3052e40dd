"""End an HTTP request after a fixed time, whatever the server does.

The timeout of a socket bounds only the wait for the next byte, so a server that sends one byte now
and then blocks a request forever. This module shuts down the connection when the time is over. The
reader then sees the end of the connection: in the headers, in the body, or during a TLS handshake.
`bounded_http` calls it.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Any, Self


class TimeLimit:
    """The time limit of one request, on a connection that is opened for it.

        with TimeLimit(80) as limit, client.stream(..., extensions={"trace": limit.note}) as reply:

    `over` is True after the limit was reached. Only the DNS lookup of the host name may take
    longer.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        # The timer must not keep the process alive after the request.
        self._timer.daemon = True

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Receive the new connection from the HTTP client, through its `trace` extension."""
        if event.endswith(".connect_tcp.complete"):
            with self._lock:
                self._forget()
                # Duplicate the descriptor. When the time is over, the client may have closed its
                # own, and the number may belong to another file.
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
            with contextlib.suppress(OSError):  # the peer already closed it
                self._connection.shutdown(socket.SHUT_RDWR)

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
