"""uvicorn's HTTP protocol, with a bound on request line and headers.

uvicorn's own, made for speed, stores headers of any size. Here a request whose head is larger than
HEAD_BYTES is answered 431 (RFC 6585, section 5) and the connection closed, before it was stored.
"""

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536

_BODY = json.dumps(
    {
        "type": "urn:birthmark:problem:head-too-large",
        "title": "Request Header Fields Too Large",
        "status": 431,
        "detail": f"Request line and headers have at most {HEAD_BYTES} bytes.",
        "instance": "about:blank",
    }
).encode()
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Counts what arrives of a request's head."""

    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and refuse a head that goes on for too long."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Let the body come: its bound is its reader's."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next head, of which nothing was counted yet."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0
