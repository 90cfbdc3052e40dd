"""Dashboard pages to sign in with an access key, and to sign out.

Both forms are protected against cross-site request forgery (CSRF). The cookie holds a session
token, never the key.
"""

import hmac
import secrets
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from birthmark_sma.authority.access import sessions
from birthmark_sma.authority.access.sessions import is_form_token
from birthmark_sma.config import Access
from birthmark_sma.errors import InsufficientScopeError, UnauthenticatedError
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.dashboard.session_middleware import read_cookie, session_cookie
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.problems import RequestError
from birthmark_sma.web.routes import DASHBOARD, DOCS, REDOC, SIGN_IN, SIGN_OUT
from birthmark_sma.web.server_state import ApiRequest

HOME = DASHBOARD.path
"""The dashboard's start page."""

_DOCUMENTATION = frozenset({DOCS.path, REDOC.path})
_FORM_BYTES = 4_096
_FORM_TYPE = "application/x-www-form-urlencoded"
_SECONDS = 10.0

router = APIRouter(include_in_schema=False)


async def show_form(request: ApiRequest) -> Response:
    """Show the sign-in form, or redirect to the page that was wanted if access is open."""
    place = _local_path(_read_fields(request.scope["query_string"]).get("next", ""))
    if request.server.authority.settings.resolved_access is Access.OPEN:
        response = RedirectResponse(place, 303)
        # The cookie of an expired session would otherwise cause a redirect loop.
        if request.context.known_caller.key is None:
            _forget_cookie(request, response, session_cookie(request.context.scheme))
        return response
    return _form(request, place)


async def sign_in(request: ApiRequest) -> Response:
    """Start a session and set its cookie.

    The form's hidden field must equal the form cookie of this browser. Otherwise a page of another
    site could sign a person in with an attacker's key (login CSRF).
    """
    form = await _read_form(request)
    place = _local_path(form.get("next", ""))
    before = read_cookie(request.context, _form_cookie(request))
    shown = form.get("form", "")
    # compare_digest takes the same time for all values, so a guess cannot be improved by timing.
    if before is None or not hmac.compare_digest(shown.encode(), before.encode()):
        return _form(request, place, "The form was too old. Please try again.", 403)
    authority = request.server.authority
    presented = form.get("key", "").strip()
    try:
        token = await run_with_timeout(
            request.server.quick,
            lambda: sessions.sign_in(authority.database, authority.key_cache, presented),
            _SECONDS,
        )
    except UnauthenticatedError as error:
        authority.rate_limits.record_failed_auth(request.context.address)
        return _form(request, place, str(error), 401)
    except InsufficientScopeError as error:
        return _form(request, place, str(error), 403)
    replaced = request.context.session_token
    # End the browser's old session: its cookie is replaced, so no sign-out could end it later.
    if replaced is not None:
        await run_with_timeout(
            request.server.quick,
            lambda: sessions.sign_out(authority.database, replaced),
            _SECONDS,
        )
    response = RedirectResponse(place, 303, {"Cache-Control": "no-store"})
    _set_cookie(request, response, session_cookie(request.context.scheme), token)
    _forget_cookie(request, response, _form_cookie(request))
    return response


async def sign_out(request: ApiRequest) -> Response:
    """End the session in the database and delete its cookie.

    Raises RequestError if the form comes from another site.
    """
    form = await _read_form(request)
    token = request.context.session_token
    response = RedirectResponse(SIGN_IN.path, 303, {"Cache-Control": "no-store"})
    if token is not None:
        if not is_form_token(form.get("form", ""), token):
            raise RequestError("foreign-form", "This form does not come from the dashboard.")
        database = request.server.authority.database
        await run_with_timeout(
            request.server.quick, lambda: sessions.sign_out(database, token), _SECONDS
        )
        _forget_cookie(request, response, session_cookie(request.context.scheme))
    return response


router.add_api_route(SIGN_IN.path, show_form, methods=["GET"])
router.add_api_route(SIGN_IN.path, sign_in, methods=["POST"])
router.add_api_route(SIGN_OUT.path, sign_out, methods=["POST"])


def _form(request: ApiRequest, place: str, fault: str | None = None, status: int = 200) -> Response:
    """Return the sign-in form with a new CSRF value in a hidden field and in a cookie."""
    form = secrets.token_urlsafe(32)
    html = rendering.render(request, "sign_in.html", next=place, fault=fault, form=form)
    response = rendering.html_response(html, status)
    _set_cookie(request, response, _form_cookie(request), form)
    return response


async def _read_form(request: ApiRequest) -> dict[str, str]:
    """Return the fields of a form of at most 4,096 bytes. If a name occurs twice, the last counts.

    Raises RequestError for another media type or a larger body.
    """
    types = request.headers.getlist("content-type")
    if [each.partition(";")[0].strip().lower() for each in types] != [_FORM_TYPE]:
        raise RequestError("unsupported-media-type", f"Send the form as {_FORM_TYPE}.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            raise RequestError("body-too-large", f"A form here has at most {_FORM_BYTES} bytes.")
    return _read_fields(bytes(body))


def _read_fields(encoded: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(encoded.decode("utf-8", "replace"), max_num_fields=16))
    except ValueError:  # more than 16 fields: not a form or link of the dashboard
        return {}


def _local_path(text: str) -> str:
    """Return the path if it is a page of the dashboard or of the documentation, else HOME.

    This prevents an open redirect: after the sign-in, `next` must not lead to another site.
    """
    if text in _DOCUMENTATION:
        return text
    # Browsers treat a backslash in a URL like a slash, so "/\host" leads to another site.
    plain = text.isascii() and text.isprintable() and "\\" not in text
    if not plain or not text.startswith((HOME + "/", HOME + "?", HOME)):
        return HOME
    try:
        parts = urlsplit(text)
    except ValueError:
        return HOME
    ours = parts.path == HOME or parts.path.startswith(HOME + "/")
    away = parts.scheme or parts.netloc or ".." in parts.path or parts.path == SIGN_OUT.path
    return text if ours and not away and parts.path != SIGN_IN.path else HOME


def _form_cookie(request: ApiRequest) -> str:
    return "__Host-sma-form" if request.url.scheme == "https" else "sma-form"


def _set_cookie(request: ApiRequest, response: Response, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,  # scripts cannot read it
        samesite="strict",  # browsers do not send it with requests from other sites (CSRF)
    )


def _forget_cookie(request: ApiRequest, response: Response, name: str) -> None:
    response.delete_cookie(
        name, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
