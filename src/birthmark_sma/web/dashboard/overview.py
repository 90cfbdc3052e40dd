"""Dashboard page "Overview": the state of the authority on one page.

The page reloads its changing part, /dashboard/figures: every 5 seconds if it shows an hour, less
often if it shows more.
"""

from datetime import timedelta
from functools import partial
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.operations.statistics import count_expiring, read_glance
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.server_metrics import VALIDATIONS as WRITER
from birthmark_sma.authority.validation.audit_counters import count_repeats
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.web.dashboard.certificate_view import CertificateView
from birthmark_sma.web.dashboard.certificates import server_certificate
from birthmark_sma.web.dashboard.charts.time_range import Recent, TimeRange, parse_range
from birthmark_sma.web.dashboard.charts.verdict_chart import chart_values, read_chart
from birthmark_sma.web.dashboard.rendering import milliseconds, render_page
from birthmark_sma.web.middleware.request_metrics import LATELY_SECONDS, RequestMetrics
from birthmark_sma.web.query_params import link
from birthmark_sma.web.routes import DASHBOARD
from birthmark_sma.web.server_state import ApiRequest, ServerState

_LISTED = 8  # families, and busiest devices
FIGURES = "/dashboard/figures"
VALIDATIONS = "/dashboard/validations"
_EVERY: dict[Recent | None, int] = {Recent.HOUR: 5, Recent.SIX_HOURS: 10, Recent.DAY: 30}
_SELDOM = 60
"""Seconds after which the page asks for new figures, by range."""
_MOST_COUNTED = 10_000  # counting stops here, so the page never counts a whole fleet

router = APIRouter(include_in_schema=False)


@router.get(DASHBOARD.path)
async def overview(request: ApiRequest) -> Response:
    """Show the whole page."""
    return await _answer(request, "overview.html")


@router.get(FIGURES)
async def figures(request: ApiRequest) -> Response:
    """Return the changing part of the page as HTML. The page replaces its old part with it."""
    return await _answer(request, "figures.html")


async def _answer(request: ApiRequest, template: str) -> Response:
    authority = request.server.authority
    shown = parse_range(request, authority.database.clock.now(), Recent.HOUR)
    authority.copy_figures()  # publish this process's metrics now, so that the page has them
    alive = _alive(authority, request.server.metrics)
    return await render_page(
        request, template, lambda connection: _read(connection, request.server, shown) | alive
    )


def _alive(authority: Authority, traffic: RequestMetrics) -> dict[str, Any]:
    """Return the values that are in the server's memory and not in the database."""
    waiting, processes = authority.figures.waiting(WRITER)
    return {
        "waiting": waiting,
        "room": authority.settings.pool_limit * processes,
        "processes": processes,
        "latency": [(f"p{share * 100:.0f}", milliseconds(at)) for share, at in traffic.lately()],
        "lately": timedelta(seconds=LATELY_SECONDS),
    }


def _read(connection: Connection, server: ServerState, shown: TimeRange) -> dict[str, Any]:
    authority = server.authority
    glance = read_glance(connection)
    chart = read_chart(connection, shown, server.hours)
    stats = glance.stats
    now = stats.until
    families = list(stats.devices_by_family.items())
    return chart_values(chart, DASHBOARD.path) | {
        "figures": link(FIGURES, shown.query),
        "every": _EVERY.get(shown.recent, _SELDOM),
        "until": now,
        "verdicts": chart.verdicts,
        "reasons": [
            (reason, times)
            for reason, times in chart.reasons.most_common()
            if reason.verdict is Verdict.FAIL
        ],
        "validations": partial(_validations, shown),
        "repeats": {
            kind: times
            for kind, times in count_repeats(connection, shown.since, shown.until).items()
            if times
        },
        "devices": stats.total_devices,
        "families": families[:_LISTED],
        "more_families": max(0, len(families) - _LISTED),
        "busiest": stats.top_devices[:_LISTED],
        "flagged": glance.flagged,
        "database": {
            "name": glance.database,
            "size": glance.size,
            "milliseconds": milliseconds(glance.seconds * 1000),
        },
        "certificates": [
            CertificateView.of("root", authority.root, now),
            CertificateView.of("intermediate", authority.issuer.certificate, now),
            *([] if (tls := server_certificate(authority, now)) is None else [tls]),
        ],
        "expiring": count_expiring(connection, now, _MOST_COUNTED),
        "most_expiring": _MOST_COUNTED,
        "renewed": orders.count_renewed_since(connection, now - timedelta(days=1)),
        "ceremony": ca_store.ceremony_time(connection),
    }


def _validations(shown: TimeRange, **wanted: str) -> str:
    """Return the URL of the validations of this range, for the links of the template."""
    return link(VALIDATIONS, wanted | shown.query)
