"""Render the dashboard's pages from Jinja templates.

Jinja escapes every value. The Content-Security-Policy forbids inline scripts, inline styles and
other origins. So text from an attacker, such as a device serial, can never run as a script (XSS).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority.access.sessions import form_token
from birthmark_sma.web.dashboard import formats
from birthmark_sma.web.dashboard.static_files import static_url
from birthmark_sma.web.middleware.request_body import get_authority
from birthmark_sma.web.middleware.timeouts import run_with_timeout

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""The Content-Security-Policy of every page here."""

TOKEN = "dashboard_token"  # noqa: S105  a key, not a secret
"""The key in the scope of the session's token. `SessionMiddleware` sets it."""

_PAGE_SECONDS = 10.0

NAVIGATION = (
    ("/dashboard", "Overview"),
    ("/dashboard/devices", "Devices"),
    ("/dashboard/validations", "Validations"),
    ("/dashboard/tables", "Key tables"),
    ("/dashboard/certificates", "Certificates"),
    ("/dashboard/callers", "Callers"),
)


async def render_page(
    request: Request, template: str, read: Callable[[Connection], dict[str, Any]]
) -> Response:
    """Return a page with the values that `read` gets from the database.

    `read` and the template run in a worker thread, so that they do not block the event loop. Raises
    DatabaseUnavailableError, also after 10 seconds, and PoolFullError if too many requests wait.
    """
    database = get_authority(request).database

    def drawn() -> str:
        with database.read() as connection:
            values = read(connection)
        return render(request, template, **values)

    return html_response(await run_with_timeout(request.app.state.slow, drawn, _PAGE_SECONDS))


def render(request: Request, template: str, **values: Any) -> str:
    """Return the HTML of a page. `values` are the template's variables."""
    token = request.scope.get(TOKEN)
    return (
        _environment()
        .get_template(template)
        .render(
            path=request.url.path,
            form_token=None if token is None else form_token(token),
            signed_in_as=_name_of_key(request),
            **values,
        )
    )


def html_response(html: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an HTML response that no browser or proxy may store."""
    return Response(
        html,
        status,
        {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", **(headers or {})},
        "text/html; charset=utf-8",
    )


def _name_of_key(request: Request) -> str | None:
    caller = request.scope.get("caller")
    return None if caller is None or caller.key is None else caller.key.name


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,  # for all file names; Jinja's default escapes nothing
        undefined=StrictUndefined,  # a missing variable is an error, not an empty text
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "navigation": NAVIGATION,
        "static": static_url,
        "version": __version__,
        "percent": formats.percent,
    }
    environment.filters |= {
        "number": formats.number,
        "moment": formats.moment,
        "stamp": formats.stamp,
        "parts": formats.parts,
        "day": formats.day,
        "size": formats.size,
        "span": formats.span,
        "spaced_hex": formats.spaced_hex,
    }
    return environment
