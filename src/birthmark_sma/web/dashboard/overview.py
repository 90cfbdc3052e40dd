"""Dashboard page "Overview": the state of the authority on one page.

The page reloads its changing part, /dashboard/figures, every 5 seconds (every 30 seconds if it
shows 24 hours).
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.operations.statistics import count_expiring, read_glance
from birthmark_sma.authority.server_metrics import VALIDATIONS
from birthmark_sma.web.dashboard.certificate_view import CertificateView
from birthmark_sma.web.dashboard.certificates import server_certificate
from birthmark_sma.web.dashboard.rendering import milliseconds, render_page
from birthmark_sma.web.middleware.request_metrics import LATELY_SECONDS, RequestMetrics
from birthmark_sma.web.server_state import ApiRequest

_LISTED = 8  # families, and busiest devices
_MOST_COUNTED = 10_000  # counting stops here, so the page never counts a whole fleet

router = APIRouter(include_in_schema=False)


@router.get("/dashboard")
async def overview(request: ApiRequest) -> Response:
    """Show the whole page."""
    return await _answer(request, "overview.html")


@router.get("/dashboard/figures")
async def figures(request: ApiRequest) -> Response:
    """Return the changing part of the page as HTML. The page replaces its old part with it."""
    return await _answer(request, "figures.html")


async def _answer(request: ApiRequest, template: str) -> Response:
    authority = request.server.authority
    hours = 24 if request.query_params.get("hours") == "24" else 1
    authority.copy_figures()  # publish this process's metrics now, so that the page has them
    alive = _alive(authority, request.server.metrics)
    return await render_page(
        request, template, lambda connection: _read(connection, authority, hours) | alive
    )


def _alive(authority: Authority, traffic: RequestMetrics) -> dict[str, Any]:
    """Return the values that are in the server's memory and not in the database."""
    waiting, processes = authority.figures.waiting(VALIDATIONS)
    return {
        "waiting": waiting,
        "room": authority.settings.pool_limit * processes,
        "processes": processes,
        "latency": [(f"p{share * 100:.0f}", milliseconds(at)) for share, at in traffic.lately()],
        "lately": timedelta(seconds=LATELY_SECONDS),
    }


def _read(connection: Connection, authority: Authority, hours: int) -> dict[str, Any]:
    glance = read_glance(connection, minutes=hours * 60 + 1)
    stats = glance.stats
    now = stats.until
    minutes, passes, fails = glance.curve
    families = list(stats.devices_by_family.items())
    return {
        "hours": hours,
        "until": now,
        "curve": _as_json(minutes, passes, fails),
        "passes_shown": sum(passes),
        "fails_shown": sum(fails),
        "verdicts": stats.verdicts_24h,
        "reasons": sorted(stats.fail_reasons_24h.items(), key=lambda each: -each[1]),
        "repeats": {kind: times for kind, times in stats.repeats_24h.items() if times},
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
            *([] if (server := server_certificate(authority, now)) is None else [server]),
        ],
        "expiring": count_expiring(connection, now, _MOST_COUNTED),
        "most_expiring": _MOST_COUNTED,
        "ceremony": ca_store.ceremony_time(connection),
    }


def _as_json(minutes: Sequence[datetime], *verdicts: Sequence[int]) -> str:
    """Return JSON for the curve: times (Unix seconds), then PASSes and FAILs of each minute.

    The last minute is the current one, and not complete.
    """
    times = [int(minute.timestamp()) for minute in minutes]
    return json.dumps([times, *verdicts], separators=(",", ":"))
