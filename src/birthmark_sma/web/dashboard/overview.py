"""The overview: whether all is well, at a glance."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.pki.profiles import DEVICE
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage import certificates, counters, devices, flags
from birthmark_sma.storage.engine import measure
from birthmark_sma.web.dashboard.certificate_view import DUE, CertificateView
from birthmark_sma.web.dashboard.certificates import server_certificate
from birthmark_sma.web.dashboard.pages import page
from birthmark_sma.web.intake import authority_of

_MINUTE = timedelta(minutes=1)
_MOST_FAMILIES = 10
_MOST_COUNTED = 10_000
_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}

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
    authority = authority_of(request)
    hours = 24 if request.query_params.get("hours") == "24" else 1
    return await page(request, template, lambda connection: _read(connection, authority, hours))


def _read(connection: Connection, authority: Authority, hours: int) -> dict[str, Any]:
    now = datetime.now(UTC)
    begun = time.perf_counter()
    database = measure(connection)
    milliseconds = round((time.perf_counter() - begun) * 1000, 1)
    reasons = sum(
        counters.count_by_hour(connection, now - timedelta(hours=24)).values(), Counter[Reason]()
    )
    passes = reasons[Reason.GENUINE]
    shown = counters.count_by_minute(connection, now - timedelta(hours=hours))
    families = list(devices.count_by_family(connection).items())
    repeats = counters.count_repeats(connection, now - timedelta(hours=24))
    return {
        "hours": hours,
        "until": now,
        "curve": _curve(shown, now, hours),
        "passes_shown": sum(each[Verdict.PASS] for each in shown.values()),
        "fails_shown": sum(each[Verdict.FAIL] for each in shown.values()),
        "passes": passes,
        "fails": reasons.total() - passes,
        "reasons": [each for each in reasons.most_common() if each[0] is not Reason.GENUINE],
        "repeats": repeats.most_common(),
        "devices": sum(count for _, count in families),
        "families": families[:_MOST_FAMILIES],
        "more_families": max(0, len(families) - _MOST_FAMILIES),
        "flagged": flags.count_open(connection),
        "waiting": authority.validator.waiting,
        "pool_limit": authority.settings.pool_limit,
        "workers": authority.settings.workers,
        "database": {
            "name": _NAMES[connection.dialect.name],
            "size": database,
            "milliseconds": milliseconds,
        },
        "latency": _latency(authority),
        "certificates": [
            CertificateView.of("root", authority.root, now),
            CertificateView.of("intermediate", authority.issuer.certificate, now),
            *([] if (server := server_certificate(authority, now)) is None else [server]),
        ],
        "expiring": _expiring(connection, now),
        "ceremony": certificates.ceremony_time(connection),
    }


def _latency(authority: Authority) -> Sequence[tuple[str, float]] | None:  # noqa: ARG001
    """Return percentiles and how many milliseconds each is; None while nothing measures them."""
    return None


def _curve(shown: counters.Minutes, now: datetime, hours: int) -> str:
    """Return times (seconds since 1970), PASS and FAIL of each whole minute, as JSON.

    The minute that still runs is left out: it would look like a fall.
    """
    last = counters.floor_to_minute(now) - _MINUTE
    minutes = [last - _MINUTE * ago for ago in reversed(range(hours * 60))]
    nothing: Counter[Verdict] = Counter()
    return json.dumps(
        [
            [int(minute.timestamp()) for minute in minutes],
            *(
                [shown.get(minute, nothing)[verdict] for minute in minutes]
                for verdict in (Verdict.PASS, Verdict.FAIL)
            ),
        ],
        separators=(",", ":"),
    )


def _expiring(connection: Connection, now: datetime) -> dict[str, Any]:
    """Count the device certificates that are due, by when they were made: all last as long."""
    over, within = (
        devices.count_provisioned_before(connection, until - DEVICE.validity, _MOST_COUNTED)
        for until in (now, now + DUE)
    )
    return {
        "days": DUE.days,
        "over": over,
        "within": within,
        "more": within >= _MOST_COUNTED,
    }
