"""Dashboard page "Health": conditions that hold, writers, database, CRLs, the doctor's findings.

The page must answer while the database is away: only the parts that need it are left out then.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple

from cryptography import x509
from fastapi import APIRouter
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations.doctor.findings import State, worst
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.engine import measure
from birthmark_sma.storage.portable_sql import choose
from birthmark_sma.web.conditions.samples import Snapshot
from birthmark_sma.web.conditions.table import CONDITIONS
from birthmark_sma.web.conditions.watch import EVERY_SECONDS
from birthmark_sma.web.dashboard.health.examination import Examined
from birthmark_sma.web.dashboard.rendering import html_response, milliseconds, render
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import parse_text
from birthmark_sma.web.server_state import ApiRequest

HEALTH = "/dashboard/health"
FINDINGS = "/dashboard/health/findings"
_SECONDS = 4.0

router = APIRouter(include_in_schema=False)


class WriterView(NamedTuple):
    """A writer of all processes: items that wait, the age of the oldest, and its last commit."""

    name: str
    waiting: int
    oldest: float
    last_commit: datetime | None
    failing: int


class DatabaseView(NamedTuple):
    """The kind and size of the database, and how long it took to answer; else its fault."""

    name: str
    size: int
    took: str
    fault: str | None


class CrlView(NamedTuple):
    """The newest revocation list of a CA."""

    ca: str
    number: int
    issued: datetime
    ends: datetime | None


@router.get(HEALTH)
async def show_health(request: ApiRequest) -> Response:
    """Show the page. With `doctor=run` it waits for an examination, which takes some seconds."""
    server = request.server
    now = datetime.now(UTC)
    runs = parse_text(request, "doctor") is not None
    examined = await server.examination.run() if runs else server.examination.recent()
    try:
        database, crls = await run_with_timeout(
            server.slow, lambda: _ask_database(server.authority), _SECONDS
        )
    except DatabaseUnavailableError as error:
        database, crls = DatabaseView("", 0, "", error.advice or str(error)), []
    newest = server.conditions.newest
    html = render(
        request,
        "health.html",
        now=now,
        held=[
            (each, timedelta(seconds=0 if newest is None else newest.time - each.since))
            for each in server.conditions.held
        ],
        evaluated=None if newest is None else datetime.fromtimestamp(newest.time, UTC),
        every=int(EVERY_SECONDS),
        watched=sum(each.check is not None for each in CONDITIONS),
        writers=[] if newest is None else _writers(newest),
        processes=0 if newest is None else int(sum(newest.samples["sma_workers"].values())),
        database=database,
        crls=crls,
        findings_url=FINDINGS,
        **_told(examined),
    )
    return html_response(html)


@router.get(FINDINGS)
async def show_findings(request: ApiRequest) -> Response:
    """Return the part of the page with the findings, once they are made. The page asks for it."""
    examination = request.server.examination
    examined = examination.recent() or await examination.run()
    return html_response(render(request, "findings.html", **_told(examined)))


def _told(examined: Examined | None) -> dict[str, Any]:
    if examined is None:
        return {"examined": None}
    bad = [each for each in examined.findings if each.is_bad]
    good = [each for each in examined.findings if not each.is_bad]
    is_critical = worst(examined.findings) is State.CRITICAL
    bad.sort(key=lambda each: each.state is not State.CRITICAL)
    return {"examined": examined, "bad": bad, "good": good, "is_critical": is_critical}


def _writers(newest: Snapshot) -> Sequence[WriterView]:
    def read(name: str, writer: str) -> float:
        values = newest.samples[name]
        return sum(value for labels, value in values.items() if ("writer", writer) in labels)

    views = []
    for writer in ("validation", "provisioning"):
        committed = read("sma_last_commit_timestamp_seconds", writer)
        views.append(
            WriterView(
                writer,
                int(read("sma_queue_items", writer)),
                read("sma_oldest_item_seconds", writer),
                datetime.fromtimestamp(committed, UTC) if committed else None,
                int(read("sma_failing_workers", writer)),
            )
        )
    return views


def _ask_database(authority: Authority) -> tuple[DatabaseView, list[CrlView]]:
    began = monotonic()
    with authority.database.read() as connection:
        size = measure(connection)
        name = choose(connection, postgresql="PostgreSQL", sqlite="SQLite")
    took = milliseconds((monotonic() - began) * 1000)
    return DatabaseView(name, size, took, None), _list_crls(authority)


def _list_crls(authority: Authority) -> list[CrlView]:
    views = []
    for ca in authority.issuers.cas:
        newest = authority.served_crls.newest(ca.name)
        if newest is not None:
            crl = x509.load_der_x509_crl(newest.der)
            views.append(CrlView(ca.name, newest.number, crl.last_update_utc, crl.next_update_utc))
    return views
