"""Render the dashboard's pages from Jinja templates.

Jinja escapes every value. The Content-Security-Policy forbids inline scripts, inline styles and
other origins. So text from an attacker, such as a device serial, can never run as a script (XSS).
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority.access.sessions import form_token
from birthmark_sma.authority.audit_chain.batches import floor_to_hour
from birthmark_sma.counts import counted
from birthmark_sma.web.dashboard.static_files import static_url
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.routes import ROUTES, TABLE, Route
from birthmark_sma.web.server_state import ApiRequest

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""The Content-Security-Policy of every page here."""

_PAGE_SECONDS = 10.0
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))

GUIDES = {
    "/dashboard/devices": "devices",
    "/dashboard/device": "devices",
    "/dashboard/validations": "audit-log",
    "/dashboard/validation": "why-did-my-token-fail",
    "/dashboard/tables": "key-tables",
    "/dashboard/certificates": "certificates",
    "/dashboard/callers": "access-keys",
    "/dashboard/acts": "acts",
    "/dashboard/act": "acts",
    "/dashboard/health": "monitor",
}
"""The page of docs/operate/ that a page of the dashboard names: the program has no copy of it."""

NAVIGATION = tuple((route.path, route.navigation) for route in TABLE if route.navigation)


async def render_page(
    request: ApiRequest, template: str, read: Callable[[Connection], dict[str, Any]]
) -> Response:
    """Return a page with the values that `read` gets from the database.

    `read` and the template run in a worker thread, so that they do not block the event loop. Raises
    DatabaseUnavailableError, also after 10 seconds, and PoolFullError if too many requests wait.
    """
    database = request.server.authority.database

    def drawn() -> str:
        with database.read() as connection:
            values = read(connection)
        return render(request, template, **values)

    return html_response(await run_with_timeout(request.server.slow, drawn, _PAGE_SECONDS))


def render(request: ApiRequest, template: str, **values: Any) -> str:
    """Return the HTML of a page. `values` are the template's variables."""
    token = request.context.session_token
    return (
        _environment()
        .get_template(template)
        .render(
            path=request.url.path,
            form_token=None if token is None else form_token(token),
            signed_in_as=_name_of_key(request),
            may=lambda path: _may_act(request, ROUTES[path]),
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


def _may_act(request: ApiRequest, route: Route) -> bool:
    """Return whether to show the person a link to a page that changes something.

    On an open server, a person without a key is led to the sign-in page by it.
    """
    caller = request.context.caller
    if caller is None or caller.key is None:
        return True
    is_allowed = route.scopes is None or caller.key.scope in route.scopes
    return is_allowed and request.context.session_token is not None


def _name_of_key(request: ApiRequest) -> str | None:
    caller = request.context.caller
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
        "guides": GUIDES,
        "static": static_url,
        "version": __version__,
        "percent": percent,
    }
    environment.filters |= {
        "number": number,
        "counted": counted,
        "moment": moment,
        "stamp": stamp,
        "exact": exact,
        "field": field,
        "exact_stamp": exact_stamp,
        "exact_or_hour": exact_or_hour,
        "hour": hour,
        "hour_stamp": hour_stamp,
        "minute": minute,
        "milliseconds": milliseconds,
        "parts": parts,
        "day": day,
        "size": size,
        "span": span,
        "spaced_hex": spaced_hex,
    }
    return environment


# --- filters of the templates: numbers, times and bytes as text


def number(value: int) -> str:
    """Format a whole number with thousands separators."""
    return f"{value:,}"


def percent(part: int, whole: int) -> str:
    """Format a share as percent with two decimals, rounded down. So 100 % means all of it."""
    if whole == 0:
        return "\N{EN DASH}"
    share = (Decimal(part) * 100 / whole).quantize(Decimal("0.01"), ROUND_FLOOR)
    return f"{share} %"


def moment(value: datetime | None) -> Markup:
    """Format a time to the second, with its zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S UTC")


def stamp(value: datetime | None) -> Markup:
    """Format a time to the second, without its zone, for columns whose head names the zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S")


def exact(value: datetime | None) -> Markup:
    """Format a time to the millisecond, with its zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S.{ms} UTC")


def exact_stamp(value: datetime | None) -> Markup:
    """Format a time to the millisecond, without its zone, for columns whose head names the zone."""
    return _time(value, "%Y-%m-%d %H:%M:%S.{ms}")


def hour(value: datetime | None) -> Markup:
    """Format the hour of a time whose minutes were dropped, with its zone."""
    return _time(value, "%Y-%m-%d %H h UTC")


def hour_stamp(value: datetime | None) -> Markup:
    """Format the hour of a time whose minutes were dropped, without its zone."""
    return _time(value, "%Y-%m-%d %H h")


def exact_or_hour(value: datetime) -> Markup:
    """Format a time of the replay ledger, which has the hour alone for old tokens."""
    return hour(value) if floor_to_hour(value) == value else exact(value)


def minute(value: datetime | None) -> Markup:
    """Format a time to the minute, without its zone."""
    return _time(value, "%Y-%m-%d %H:%M")


def field(value: datetime) -> str:
    """Format a UTC time without its zone, as an HTML datetime-local field has it."""
    return value.replace(tzinfo=None).isoformat()


def day(value: datetime | None) -> Markup:
    """Format the UTC day of a time."""
    return _time(value, "%Y-%m-%d")


def span(duration: timedelta) -> str:
    """Format a duration in the largest unit (day to second) of which it has at least two."""
    seconds = int(abs(duration.total_seconds()))
    for name, length in _UNITS:
        if seconds >= 2 * length:
            return counted(seconds // length, name)
    return counted(seconds, "second")


def milliseconds(value: float) -> str:
    """Format milliseconds: without decimals from 100 on, with one decimal below."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def spaced_hex(value: bytes | str) -> Markup:
    """Format bytes as pairs of hex digits with possible line breaks between them."""
    digits = value.hex() if isinstance(value, bytes) else value
    pairs = [digits[start : start + 2] for start in range(0, len(digits), 2)]
    return Markup(":<wbr>").join(escape(pair) for pair in pairs)


def parts(name: str) -> Markup:
    """Format a distinguished name (RFC 4514) with possible line breaks after its commas."""
    return Markup(",<wbr>").join(escape(each) for each in name.split(","))


def size(value: int) -> str:
    """Format a number of bytes in the largest fitting unit, from bytes to TiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    place = max(0, min(len(units) - 1, (max(value, 1).bit_length() - 1) // 10))
    return counted(value, "byte") if place == 0 else f"{value / 1024**place:,.1f} {units[place]}"


def _time(value: datetime | None, form: str) -> Markup:
    if value is None:
        return Markup("\N{EN DASH}")
    utc = value.astimezone(UTC)
    fraction = f"{utc.microsecond // 1000:03}"
    shown = utc.strftime(form.replace("{ms}", fraction))
    precision = "milliseconds" if "{ms}" in form else "seconds"
    return Markup('<time datetime="{}">{}</time>').format(utc.isoformat(timespec=precision), shown)
