"""Load the session of a dashboard request, and show problem documents as pages.

`web.pipeline` calls `load_session` before authentication, which decides about access, and `show`
for each error. This module sets the session in the request's context and never grants access.
"""

import json
import re
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response

from birthmark_sma.authority.access import sessions
from birthmark_sma.errors import UnauthenticatedError
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.middleware.rate_limit import count_guess
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.routes import DASHBOARD_FILES, SIGN_IN
from birthmark_sma.web.server_state import ApiRequest

_SECONDS = 5.0


def session_cookie(scheme: str) -> str:
    """Return the name of the session's cookie.

    Over TLS it has the prefix "__Host-", which binds the cookie to this host and to TLS (RFC
    6265bis, section 4.1.3.2).
    """
    return "__Host-sma-session" if scheme == "https" else "sma-session"


def read_cookie(context: RequestContext, name: str) -> str | None:
    """Return the value of a cookie, or None if there is no cookie or several of that name."""
    # A regular expression is one pass in C. An attacker may send 16 KiB of semicolons.
    named = re.compile(rb"(?:^|;)[ \t]*" + name.encode() + rb"=([^;]*)")
    found = [
        content for value in context.header_values(b"cookie") for content in named.findall(value)
    ]
    return found[0].strip().decode("latin-1") if len(found) == 1 else None


async def load_session(request: ApiRequest) -> None:
    """Find the session of the request's cookie, and set it in the context.

    Raises RateLimitedError after too many unknown cookies, and DatabaseUnavailableError.
    """
    context, authority = request.context, request.server.authority
    token = read_cookie(context, session_cookie(context.scheme))
    if token is None or context.route is DASHBOARD_FILES:
        return
    context.shows_session = True
    if not token:
        return
    by_person = not _asks_by_itself(request.headers)
    try:
        session = await run_with_timeout(
            request.server.quick,
            lambda: sessions.find_session(authority.database, token, by_person=by_person),
            _SECONDS,
        )
    except UnauthenticatedError:
        # The response of the sign-in page does not show whether a guessed cookie is valid.
        if context.route is not SIGN_IN:
            count_guess(context, authority.rate_limits)
        return
    if session is not None:
        context.session = session
        context.session_token = token


def show(request: ApiRequest, problem: JSONResponse) -> Response:
    """Return the response to show for a problem document: a page for a person, else itself.

    401 redirects to the sign-in page. htmx requests get no body, so the page keeps its content.
    """
    headers, status = request.headers, problem.status_code
    by_itself = _asks_by_itself(headers)
    if not by_itself and "text/html" not in headers.get("accept", ""):
        return problem
    kept = {
        name: problem.headers[name] for name in ("retry-after", "allow") if name in problem.headers
    }
    if status == 401:
        where = SIGN_IN.path
        if by_itself:
            return rendering.html_response("", 401, {"HX-Redirect": where, "HX-Reswap": "none"})
        if request.method == "GET":
            query = f"?{request.url.query}" if request.url.query else ""
            where = f"{where}?next={quote(request.url.path + query, safe='')}"
        return RedirectResponse(where, 303, {"Cache-Control": "no-store"})
    if by_itself:
        return rendering.html_response("", status, {"HX-Reswap": "none", **kept})
    told = json.loads(bytes(problem.body))
    html = rendering.render(
        request, "problem.html", status=status, title=told["title"], detail=told["detail"]
    )
    return rendering.html_response(html, status, kept)


def _asks_by_itself(headers: Headers) -> bool:
    """Return true if htmx sent the request to update a page, rather than a person."""
    return "hx-request" in headers
