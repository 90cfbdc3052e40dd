"""ASGI middleware of the dashboard: it loads the session and shows problem documents as pages.

It runs before `web.middleware.authentication`, which decides about access. It puts the session into
the scope and never grants access itself. Requests outside /dashboard pass unchanged.
"""

import json
import re
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma.authority.access import sessions
from birthmark_sma.authority.authority import Authority
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    RateLimitedError,
    UnauthenticatedError,
)
from birthmark_sma.web.dashboard import rendering, static_files
from birthmark_sma.web.middleware.authentication import SESSION, route_name
from birthmark_sma.web.middleware.rate_limit import count_session_guess
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.problems import MEDIA_TYPE, error_response

HOME = "/dashboard"
_HOME = HOME.encode()
SIGN_IN = "/dashboard/sign-in"
_SECONDS = 5.0


def session_cookie(scope: Scope) -> str:
    """Return the name of the session's cookie.

    Over TLS it has the prefix "__Host-", which binds the cookie to this host and to TLS (RFC
    6265bis, section 4.1.3.2).
    """
    return "__Host-sma-session" if scope["scheme"] == "https" else "sma-session"


def read_cookie(scope: Scope, name: str) -> str | None:
    """Return the value of a cookie, or None if there is no cookie or several of that name."""
    # A regular expression is one pass in C. An attacker may send 16 KiB of semicolons.
    named = re.compile(rb"(?:^|;)[ \t]*" + name.encode() + rb"=([^;]*)")
    found = [
        content
        for header, value in scope["headers"]
        if header == b"cookie"
        for content in named.findall(value)
    ]
    return found[0].strip().decode("latin-1") if len(found) == 1 else None


def asks_by_itself(headers: Headers) -> bool:
    """Return true if htmx sent the request to update a page, rather than a person."""
    return "hx-request" in headers


class SessionMiddleware:
    """ASGI middleware for the paths below /dashboard."""

    def __init__(self, app: ASGIApp, fastapi: FastAPI) -> None:
        self._app = app
        self._state = fastapi.state
        self._fastapi = fastapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Load the session of a dashboard request, and convert problem documents to pages."""
        if scope["type"] != "http" or not _is_ours(scope["raw_path"]):
            await self._app(scope, receive, send)
            return
        # FastAPI sets this later, but an error page needs `request.app` now.
        scope.setdefault("app", self._fastapi)
        headers = Headers(scope=scope)
        if _wants_page(headers):
            send = _ProblemAsPage(scope, receive, send).send
        try:
            await self._admit(scope, headers)
        except (DatabaseUnavailableError, RateLimitedError) as error:
            # No outer middleware converts these exceptions. For a program, `send` changes nothing.
            await error_response(Request(scope), error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, headers: Headers) -> None:
        """Put the session of the request's cookie into the scope.

        SESSION is absent without a cookie. It is None if the cookie is empty or unknown, or if its
        session is over.
        Raises RateLimitedError after too many unknown cookies, and DatabaseUnavailableError.
        """
        authority: Authority = self._state.authority
        token = read_cookie(scope, session_cookie(scope))
        if token is None or route_name(scope) == static_files.PATH:
            return
        scope[SESSION] = None
        if not token:
            return
        by_person = not asks_by_itself(headers)
        try:
            session = await run_with_timeout(
                self._state.askers,
                lambda: sessions.find_session(authority.database, token, by_person=by_person),
                _SECONDS,
            )
        except UnauthenticatedError:
            # The response of the sign-in page does not show whether a guessed cookie is valid.
            if route_name(scope) != SIGN_IN:
                count_session_guess(scope, authority.rate_limits)
            return
        if session is not None:
            scope[SESSION] = session
            scope[rendering.TOKEN] = token


class _ProblemAsPage:
    """Wrapper of `send` that replaces a problem document by an HTML page."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        """Pass a message on, or collect a problem document and send it as a page."""
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type") == MEDIA_TYPE:
                self._head = message
                return
        elif self._head is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                page = _page_of(self._scope, self._head, json.loads(self._body))
                await page(self._scope, self._receive, self._send)
            return
        await self._send(message)


def _page_of(scope: Scope, head: Message, problem: dict[str, Any]) -> Response:
    """Return the response to show for a problem document.

    401 redirects to the sign-in page. htmx requests get no body, so the page keeps its content.
    """
    request = Request(scope)
    status = head["status"]
    kept = {
        name: value
        for name, value in Headers(raw=head["headers"]).items()
        if name in {"retry-after", "allow"}
    }
    if status == 401:
        where = SIGN_IN
        if request.method == "GET" and not asks_by_itself(request.headers):
            query = f"?{request.url.query}" if request.url.query else ""
            where = f"{SIGN_IN}?next={quote(request.url.path + query, safe='')}"
        if asks_by_itself(request.headers):
            return rendering.html_response("", 401, {"HX-Redirect": where, "HX-Reswap": "none"})
        return RedirectResponse(where, 303, {"Cache-Control": "no-store"})
    if asks_by_itself(request.headers):
        return rendering.html_response("", status, {"HX-Reswap": "none", **kept})
    html = rendering.render(
        request, "problem.html", status=status, title=problem["title"], detail=problem["detail"]
    )
    return rendering.html_response(html, status, kept)


def _is_ours(path: bytes) -> bool:
    return path == _HOME or path.startswith(_HOME + b"/")


def _wants_page(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "") or asks_by_itself(headers)
