"""Middleware that adds security header fields, the request id and the fields in `ADDED`.

Fields that are the same for every response (`EVERYWHERE`) are given to uvicorn by `web.server`,
which sends them with all responses. The others depend on the response: a page may run its own
scripts, anything else may load and run nothing. The fast path adds `OF_JSON` itself.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma.web.logs.request_ids import get_request_id
from birthmark_sma.web.middleware.authentication import route_name

Header = tuple[bytes, bytes]

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
_WORKERS = {"/redoc": "; worker-src blob:"}  # the search of this page runs in a web worker
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

PRIVATE = b"no-store"
_PUBLIC = ("/pki/", "/static-offline-docs")

# One year, in seconds.
STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_ONLY_HERE = (b"localhost", b"127.0.0.1", b"[::1]")

OF_JSON: Sequence[Header] = (
    (b"content-security-policy", NOTHING_RUNS),
    (b"cache-control", PRIVATE),
)
"""The fields that `ResponseHeaders` would add to a JSON response, for code that does not use it."""

ADDED = "added_headers"
"""The key in the scope for header fields that the response gets, whatever its status.
`rate_limit` sets it."""


class ResponseHeaders:
    """Middleware that adds the header fields to every response of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the header fields to its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page: Message | None = None

        async def complete(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                if _is_page(message):
                    # Held back until the body comes: the policy has the hashes of its scripts.
                    page = message
                    return
                message["headers"] = [*message["headers"], *_headers(scope, message, NOTHING_RUNS)]
            elif page is not None:
                head, page = page, None
                policy = _policy_of_page(route_name(scope), message.get("body", b""))
                head["headers"] = [*head["headers"], *_headers(scope, head, policy)]
                await send(head)
            await send(message)

        await self._app(scope, receive, complete)


def of_transport(scope: Scope) -> Sequence[Header]:
    """Return Strict-Transport-Security (RFC 6797) for a request over TLS, else nothing.

    It is not sent for localhost: browsers would then refuse plain HTTP, for a year, to every other
    program that listens on localhost.
    """
    if scope["scheme"] != "https":
        return ()
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return () if host.lower().startswith(_ONLY_HERE) else (STRICT_TRANSPORT,)


def _headers(scope: Scope, head: Message, policy: bytes) -> Iterator[Header]:
    # An endpoint that sets one of these two fields itself keeps its value.
    present = {name.lower() for name, _ in head["headers"]}
    if b"content-security-policy" not in present:
        yield b"content-security-policy", policy
    if b"cache-control" not in present and not route_name(scope).startswith(_PUBLIC):
        yield b"cache-control", PRIVATE
    yield from of_transport(scope)
    yield from scope.get(ADDED, ())
    yield b"x-request-id", get_request_id(scope).encode()


def _is_page(head: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/html")
        for name, value in head["headers"]
    )


def _policy_of_page(route: str, body: bytes) -> bytes:
    """Return the Content-Security-Policy of a page.

    It allows scripts from this server, and the inline scripts of the page by their SHA-256.
    """
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(body))
    hashes = "".join(f" 'sha256-{base64.b64encode(each).decode()}'" for each in digests)
    return _PAGE.format(hashes=hashes, more=_WORKERS.get(route, "")).encode()
