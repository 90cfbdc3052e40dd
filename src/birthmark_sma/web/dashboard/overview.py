"""The overview: whether all is well, at a glance."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.operations.overview import DATABASE_NAMES, read_glance
from birthmark_sma.authority.server_metrics import VALIDATIONS
from birthmark_sma.pki.profiles import DEVICE
from birthmark_sma.web.dashboard.certificate_view import DUE, CertificateView
from birthmark_sma.web.dashboard.certificates import server_certificate
from birthmark_sma.web.dashboard.formats import milliseconds
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.middleware.request_body import get_authority
from birthmark_sma.web.middleware.request_metrics import LATELY_SECONDS, RequestMetrics

_LISTED = 8
_MOST_COUNTED = 10_000

router = APIRouter(include_in_schema=False)


@router.get("/dashboard")
async def overview(request: Request) -> Response:
    """Show everything."""
    return await _answer(request, "overview.html")


@router.get("/dashboard/figures")
async def figures(request: Request) -> Response:
    """Show what changes, for the page to put in the place of what it shows."""
    return await _answer(request, "figures.html")


async def _answer(request: Request, template: str) -> Response:
    authority = get_authority(request)
    hours = 24 if request.query_params.get("hours") == "24" else 1
    authority.copy_figures()  # this process's, so that no figure is older than the page
    alive = _alive(authority, request.app.state.traffic)
    return await render_page(
        request, template, lambda connection: _read(connection, authority, hours) | alive
    )


def _alive(authority: Authority, traffic: RequestMetrics) -> dict[str, Any]:
    """Return what the processes of this server know, and no database."""
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
    # The minute that still runs is left out: it would look like a fall.
    minutes = glance.curve.minutes[:-1]
    passes, fails = glance.curve.passes[:-1], glance.curve.fails[:-1]
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
            "name": DATABASE_NAMES[glance.dialect],
            "size": glance.size,
            "milliseconds": milliseconds(glance.seconds * 1000),
        },
        "certificates": [
            CertificateView.of("root", authority.root, now),
            CertificateView.of("intermediate", authority.issuer.certificate, now),
            *([] if (server := server_certificate(authority, now)) is None else [server]),
        ],
        "expiring": _expiring(connection, now),
        "ceremony": ca_store.ceremony_time(connection),
    }


def _as_json(minutes: Sequence[datetime], *verdicts: Sequence[int]) -> str:
    """Return times (seconds since 1970), and PASS and FAIL of each minute, as uPlot reads them."""
    times = [int(minute.timestamp()) for minute in minutes]
    return json.dumps([times, *verdicts], separators=(",", ":"))


def _expiring(connection: Connection, now: datetime) -> dict[str, Any]:
    """Count the device certificates that are due, by when they were made: all last as long."""
    over, within = (
        device_store.count_provisioned_before(connection, until - DEVICE.validity, _MOST_COUNTED)
        for until in (now, now + DUE)
    )
    return {
        "days": DUE.days,
        "over": over,
        "within": within,
        "more": within >= _MOST_COUNTED,
    }
