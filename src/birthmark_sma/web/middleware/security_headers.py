"""Headers that keep a browser from being turned against whoever opens what the server sends.

What is the same for every answer is given to uvicorn, which sends it with all of them. The rest
depends on the answer: pages may run their own scripts, all else nothing at all.
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
"""The policy of whatever is no page: a browser that opens it loads and runs nothing."""

_PAGE = (
    "default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'{more}"
)
_WORKERS = {"/redoc": "; worker-src blob:"}  # its search runs in one
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

PRIVATE = b"no-store"
_PUBLIC = ("/pki/", "/static-offline-docs")

STRICT_TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_ONLY_HERE = (b"localhost", b"127.0.0.1", b"[::1]")

OF_JSON: Sequence[Header] = (
    (b"content-security-policy", NOTHING_RUNS),
    (b"cache-control", PRIVATE),
)
"""What an answer in JSON has besides."""

ADDED = "added_headers"
"""Where in the scope of a request others put headers that its answer gets, whatever it will be."""


class ResponseHeaders:
    """Completes the head of every answer of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and add what belongs to the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page: Message | None = None

        async def complete(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                if _is_page(message):
                    page = message  # which scripts it may run, its body says
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
    """Return the header that keeps browsers to TLS (RFC 6797), for a request that came over TLS.

    Not on a laptop: what `localhost` promises there holds for every program that ever listens.
    """
    if scope["scheme"] != "https":
        return ()
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return () if host.lower().startswith(_ONLY_HERE) else (STRICT_TRANSPORT,)


def _headers(scope: Scope, head: Message, policy: bytes) -> Iterator[Header]:
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
    """Let a page run this server's scripts, and those that stand in it as they stand there."""
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(body))
    hashes = "".join(f" 'sha256-{base64.b64encode(each).decode()}'" for each in digests)
    return _PAGE.format(hashes=hashes, more=_WORKERS.get(route, "")).encode()
