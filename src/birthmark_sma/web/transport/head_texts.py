"""Write the texts of heads that the HTTP protocol sends or parses by itself.

`transport.protocol` uses these functions for requests that the application never receives, and for
requests that ask for another protocol. Both are rare.
"""

import json
from collections.abc import Iterable

from birthmark_sma.web.middleware.security_headers import EVERYWHERE, OF_JSON
from birthmark_sma.web.problems import Problem
from birthmark_sma.web.request_context import Header, new_id

_FOR_BROWSERS = b"".join(
    [f"{name}: {value}\r\n".encode() for name, value in EVERYWHERE]
    + [b"%b: %b\r\n" % field for field in OF_JSON]
)
_OF_THIS_CONNECTION = (b"connection", b"upgrade", b"http2-settings")


def problem_bytes(problem: Problem, more_fields: bytes) -> bytes:
    """Return a problem document as a complete response, with a new request id.

    `more_fields` holds further header lines, each ending with CRLF.
    """
    request_id = new_id()
    body = json.dumps(problem.document(problem.detail, "about:blank", request_id)).encode()
    return b"".join(
        (
            b"HTTP/1.1 %d %b\r\n" % (problem.status, problem.title.encode()),
            b"Content-Type: application/problem+json\r\n",
            b"X-Request-ID: %b\r\n" % request_id.encode(),
            _FOR_BROWSERS,
            more_fields,
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body),
        )
    )


def head_without_upgrade(line: bytes, headers: Iterable[Header]) -> bytes:
    """Return a head that asks for no other protocol, and for the end of the connection."""
    fields = [b"%b: %b" % each for each in headers if each[0] not in _OF_THIS_CONNECTION]
    return b"\r\n".join([line, *fields, b"connection: close", b"", b""])
