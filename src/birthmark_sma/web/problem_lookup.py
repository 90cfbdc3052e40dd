"""The problems of connections, and the look-up of a problem by status, slug or error.

`web.transport.protocol` sends the problems of requests that the application never receives;
`web.problem_documents` and `web.api.openapi` look up rows of `web.problems`.
"""

from starlette.exceptions import HTTPException

from birthmark_sma.web.problems import (
    INTERNAL,
    TABLE,
    Problem,
    RequestError,
    UnknownAddressError,
)

# The problems of requests that the application never receives. The HTTP protocol sends them and
# closes the connection.
LINE_BYTES = 8_192
HEAD_BYTES = 16_384
MAX_FIELDS = 100

NOT_HTTP = Problem(
    400, "not-http", "Bad Request", detail="This is not HTTP/1.1 as RFC 9112 defines it."
)
NOT_ONE_HOST = Problem(
    *(400, "not-one-host", "Bad Request"),
    detail="An HTTP/1.1 request has exactly one Host field: a name or an address, and optionally a"
    " port (RFC 9112, section 3.2).",
)
REQUEST_TIMEOUT = Problem(
    *(408, "request-timeout", "Request Timeout", RequestError),
    "The request was not complete in time",
    "The request was not complete in time. Send it at once, or on a faster connection.",
)
TARGET_TOO_LONG = Problem(
    *(414, "target-too-long", "URI Too Long", None),
    "The request line is too long",
    f"A request line has at most {LINE_BYTES} bytes. Shorten the query.",
)
HEAD_TOO_LARGE = Problem(
    *(431, "head-too-large", "Request Header Fields Too Large", None),
    "The header fields are too large or too many",
    f"A head has at most {HEAD_BYTES} bytes and {MAX_FIELDS} fields. Send fewer or shorter ones.",
)
TRANSFER_CODING = Problem(
    *(501, "transfer-coding", "Not Implemented", None),
    "The body has a transfer coding other than chunked",
    "The only supported transfer coding is chunked. Send a Content-Length, or Transfer-Encoding:"
    " chunked.",
)
HTTP_VERSION = Problem(
    *(505, "http-version", "HTTP Version Not Supported", None),
    "The request is not in HTTP/1.1 or HTTP/1.0",
    "Send the request in HTTP/1.1 or HTTP/1.0.",
)
OF_CONNECTIONS = (
    *(NOT_HTTP, NOT_ONE_HOST, REQUEST_TIMEOUT, TARGET_TOO_LONG, HEAD_TOO_LARGE, TRANSFER_CODING),
    HTTP_VERSION,
)


def find_example(status: int) -> Problem:
    """Return the problem that documents a status. Raises StopIteration if there is none."""
    rows = (*TABLE, INTERNAL, *OF_CONNECTIONS)
    return next(each for each in rows if each.status == status and each.meaning)


def find_by_slug(slug: str) -> Problem:
    """Return the first row with this slug. Raises StopIteration if there is none."""
    return next(each for each in (*TABLE, *OF_CONNECTIONS) if each.slug == slug)


def find_problem(error: Exception) -> Problem:
    """Return the row of an error; INTERNAL if it has none."""
    for each in (*TABLE, REQUEST_TIMEOUT):
        if each.error is not None and isinstance(error, each.error):
            match error:
                case RequestError(slug=slug):
                    found = each.slug == slug
                case UnknownAddressError(reason=reason):
                    found = each.title == reason.told_to_caller
                case HTTPException(status_code=status):
                    found = each.status == status
                case _:
                    found = True
            if found:
                return each
    return INTERNAL
