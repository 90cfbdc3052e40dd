"""uvicorn's HTTP protocol, with bounds on what a request may take up before it is whole.

uvicorn's own, made for speed, stores heads of any size and waits for ever. Here a head of more than
HEAD_BYTES is answered 431 (RFC 6585, section 5), and a request that is not whole in time 408 (RFC
9110, section 15.5.9); then the connection is closed.
"""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536


def _refusal(status: int, title: str, slug: str, detail: str) -> bytes:
    body = json.dumps(
        {
            "type": f"urn:birthmark:problem:{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            "instance": "about:blank",
        }
    ).encode()
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (status, title.encode(), len(body), body)
    )


_HEAD_TOO_LARGE = _refusal(
    431,
    "Request Header Fields Too Large",
    "head-too-large",
    f"Request line and headers have at most {HEAD_BYTES} bytes.",
)
_TOO_SLOW = _refusal(
    408,
    "Request Timeout",
    "request-timeout",
    "The request did not arrive whole in time. Send it at once, or on a faster connection.",
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Counts what arrives of a head, and looks now and then whether a request drags on.

    A request must be whole `request_seconds` after it began, or half as long again at most.
    """

    request_seconds = 30.0
    _in_head = True
    _head_bytes = 0
    _begun: float | None = None  # when the request that is not whole yet began
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request at once: who connects and says nothing is slow as well."""
        HttpToolsProtocol.connection_made(self, transport)
        self._begun = self.loop.time()
        self._looking = self.loop.call_later(self.request_seconds / 2, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
        HttpToolsProtocol.connection_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and refuse a head that goes on for too long."""
        if self._begun is None:
            self._begun = self.loop.time()
        self._head_bytes += len(data)
        HttpToolsProtocol.data_received(self, data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Let the body come: its size is its reader's to bound."""
        self._in_head = False
        HttpToolsProtocol.on_headers_complete(self)

    def on_message_complete(self) -> None:
        """Expect the next head, of which nothing was counted yet."""
        HttpToolsProtocol.on_message_complete(self)
        self._in_head = True
        self._head_bytes = 0
        self._begun = None

    def _look(self) -> None:
        now = self.loop.time()
        if self._begun is not None and now - self._begun > self.request_seconds:
            self._refuse(_TOO_SLOW)
        elif not self.transport.is_closing():
            self._looking = self.loop.call_later(self.request_seconds / 2, self._look)

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def bounded_protocol(seconds: float) -> type[BoundedHttpProtocol]:
    """Return the protocol with this much time for a request."""
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"request_seconds": seconds})
