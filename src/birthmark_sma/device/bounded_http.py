"""Send an HTTP request and read the response in bounded time and memory, whatever the server does.

`provisioning`, `renewal` and `intake` call it. A slow or hostile server must never block or exhaust
a camera.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, NamedTuple, Self

import httpx2

from birthmark_sma.http_requests import parse_http_date, parse_retry_after

HearTime = Callable[[datetime, str], None]
"""Callback for the time in a response, and the name of the server that sent it."""


class Answer(NamedTuple):
    """A complete response."""

    status: int
    headers: httpx2.Headers
    content: bytes


def bounded_post(
    client: httpx2.Client,
    url: httpx2.URL | str,
    content: bytes,
    headers: dict[str, str],
    *,
    seconds: float,
    max_bytes: int,
) -> Answer:
    """POST once, without following redirects, and return a response of at most `max_bytes`.

    The call ends after `seconds`, however slowly bytes arrive. The timeouts of httpx2 cannot do
    this: they bound the wait for the next byte. So each call opens its own connection, which
    `_TimeLimit` shuts down. The client's own timeout bounds the time to connect. On a connection
    that the client kept open from another request, only its own timeouts apply.

    Raises httpx2.HTTPError: ReadTimeout if it takes longer, RemoteProtocolError if the response is
    larger, or compressed although the request forbids it (64 KiB can decompress to gigabytes), and
    its other subclasses for other failures. httpx2.InvalidURL is not a subclass.
    """
    return _exchange(client, "POST", url, content, headers, seconds=seconds, max_bytes=max_bytes)


def bounded_get(
    client: httpx2.Client, url: httpx2.URL | str, *, seconds: float, max_bytes: int
) -> Answer:
    """GET once, with the bounds and the errors of `bounded_post`."""
    return _exchange(client, "GET", url, b"", {}, seconds=seconds, max_bytes=max_bytes)


def open_client(
    given: httpx2.Client | None, context: ssl.SSLContext | None, *, seconds: float, connect: float
) -> AbstractContextManager[httpx2.Client]:
    """Return the app's client, which stays open, or a new one with these timeouts in seconds.

    A client that the app has closed meanwhile is replaced by a new one: renewals come much later.
    """
    if given is not None and not given.is_closed:
        return nullcontext(given)
    return httpx2.Client(timeout=httpx2.Timeout(seconds, connect=connect), verify=context or True)


def _exchange(
    client: httpx2.Client,
    method: str,
    url: httpx2.URL | str,
    content: bytes,
    headers: dict[str, str],
    *,
    seconds: float,
    max_bytes: int,
) -> Answer:
    received = b""
    try:
        with (
            _TimeLimit(seconds) as limit,
            client.stream(
                method,
                url,
                content=content or None,
                # A request on a kept connection has no connect event, so `_TimeLimit` could not end
                # it.
                headers=headers | {"Accept-Encoding": "identity", "Connection": "close"},
                follow_redirects=False,
                extensions={"trace": limit.note},
            ) as response,
        ):
            if "Content-Encoding" in response.headers:
                raise httpx2.RemoteProtocolError("the response is compressed")
            for part in response.iter_bytes():
                received += part
                if len(received) > max_bytes:
                    raise httpx2.RemoteProtocolError("the response is too large")
    except httpx2.HTTPError:
        # A shut-down connection can raise any error. ReadTimeout replaces it below.
        if not limit.over:
            raise
    if limit.over:  # also after a response that seems complete
        raise httpx2.ReadTimeout("the response takes too long")
    return Answer(response.status_code, response.headers, received)


def response_time(answer: Answer) -> datetime | None:
    """Return the time in the Date header (RFC 9110, section 6.6.1), or None."""
    return parse_http_date(answer.headers.get("Date", ""))


def retry_after(answer: Answer) -> float | None:
    """Return the seconds in the Retry-After header, or None.

    A date is compared with the server's own Date header, because the camera's clock may be wrong.
    """
    return parse_retry_after(answer.headers.get("Retry-After"), response_time(answer))


def describe(error: httpx2.HTTPError) -> str:
    """Return the kind of an error and its text, if it has one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _TimeLimit:
    """The time limit of one request, on a connection that is opened for it.

    When the time is over, it shuts down the connection. The reader then sees the end of the
    connection: in the headers, in the body, or during a TLS handshake. `over` is True after that.
    Only the DNS lookup of the host name may take longer.
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
