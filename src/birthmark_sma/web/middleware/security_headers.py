"""Add security header fields, the request id and the fields of the request's context to responses.

Fields that are the same for every response (`EVERYWHERE`) are given to uvicorn by `web.server`,
which sends them with all responses. The others depend on the response: a page may run its own
scripts, anything else may load and run nothing. `web.pipeline` makes a ResponseHeaders for each
request.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Iterable, Sequence

from starlette.types import Message, Send

from birthmark_sma.web.request_context import Header, RequestContext
from birthmark_sma.web.routes import REDOC, Route

EVERYWHERE: Sequence[tuple[str, str]] = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Permissions-Policy",
        "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)

NOTHING_RUNS = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of a response that is no page. A browser that opens it loads and runs
nothing."""

_PAGE = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'{more}"
)
_WORKERS = "; worker-src blob:"  # the search of ReDoc runs in a web worker
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

_NOT_STORED = (b"cache-control", b"no-store")

# One year, in seconds.
STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_ONLY_HERE = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]*)?", re.IGNORECASE)

OF_JSON: Sequence[Header] = (
    (b"content-security-policy", NOTHING_RUNS),
    _NOT_STORED,
)
"""The fields that `ResponseHeaders` would add to a JSON response, for code that does not use it."""


class ResponseHeaders:
    """Adds the header fields to the response of one request, and notes its status.

    `send` is ASGI's; the application gets the method `send` in its place.
    """

    __slots__ = ("_context", "_page", "_send")

    def __init__(self, context: RequestContext, send: Send) -> None:
        self._context = context
        self._send = send
        self._page: Message | None = None

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the response. It is no coroutine of its own, which would cost more."""
        if message["type"] == "http.response.start":
            self._context.status = message["status"]
            if _is_page(message["headers"]):
                return self._hold(message)
            message["headers"] = _complete(self._context, message["headers"], NOTHING_RUNS)
        elif self._page is not None:
            return self._send_page(self._page, message)
        return self._send(message)

    async def _hold(self, page: Message) -> None:
        """Hold a head back until the body comes: the policy has the hashes of its scripts."""
        self._page = page

    async def _send_page(self, page: Message, message: Message) -> None:
        self._page = None
        policy = _policy_of_page(self._context.route, message.get("body", b""))
        page["headers"] = _complete(self._context, page["headers"], policy)
        await self._send(page)
        await self._send(message)


def _complete(context: RequestContext, given: Iterable[Header], policy: bytes) -> list[Header]:
    headers = list(given)
    names = dict(headers)  # in lower case, as ASGI demands
    # An endpoint that sets one of these two fields itself keeps its value.
    if b"content-security-policy" not in names:
        headers.append((b"content-security-policy", policy))
    if b"cache-control" not in names and not context.route.cacheable:
        headers.append(_NOT_STORED)
    if context.scheme == "https" and not _is_local(context):
        headers.append(STRICT_TRANSPORT)
    headers += context.added_headers
    headers.append((b"x-request-id", context.request_id.encode()))
    return headers


def _is_local(context: RequestContext) -> bool:
    """Return true for localhost, which gets no Strict-Transport-Security (RFC 6797).

    Browsers would then refuse plain HTTP, for a year, to every other program that listens on
    localhost.
    """
    return context.host is not None and _ONLY_HERE.fullmatch(context.host) is not None


def _is_page(headers: Iterable[Header]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/html")
    return False


def _policy_of_page(route: Route, body: bytes) -> bytes:
    """Return the Content-Security-Policy of a page.

    It allows scripts from this server, and the inline scripts of the page by their SHA-256.
    """
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(body))
    hashes = "".join(f" 'sha256-{base64.b64encode(each).decode()}'" for each in digests)
    return _PAGE.format(hashes=hashes, more=_WORKERS if route is REDOC else "").encode()
