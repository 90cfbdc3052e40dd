"""Dashboard pages of validations: filter the audit log, page through it, export it, open one row.

`trails.export` streams the exports.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from birthmark_sma.authority.validation import audit_search, validation_details
from birthmark_sma.authority.validation.audit_counters import HourCounts
from birthmark_sma.authority.validation.audit_search import AuditEntry, AuditFilter, Cursor
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.web.dashboard.charts.time_range import Recent, TimeRange, between, recent_range
from birthmark_sma.web.dashboard.charts.verdict_chart import chart_values, read_chart
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.dashboard.trails.export import parse_serials, stream_export
from birthmark_sma.web.query_params import (
    as_field,
    link,
    parse_choice,
    parse_digest,
    parse_name,
    parse_number,
    parse_text,
    parse_time,
    refused,
)
from birthmark_sma.web.server_state import ApiRequest

LIST = "/dashboard/validations"
ONE = "/dashboard/validation"
CSV = "/dashboard/validations.csv"
JSON_LINES = "/dashboard/validations.jsonl"

_A_PAGE = 50  # rows of a page
_AROUND = timedelta(minutes=5)  # before and after a validation
_A_PIECE = 2_000  # rows of an export that one transaction reads
# A spreadsheet runs a cell that begins with one of these as a formula (CSV injection). The last
# four are the full-width forms of = + - @.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

Writer: TypeAlias = Callable[[Sequence[AuditEntry]], str]

router = APIRouter(include_in_schema=False)


@router.get(LIST)
async def list_validations(request: ApiRequest) -> Response:
    """Show a page of the rows that match the filter, newest first, and the verdicts of that time.

    The counters know times, verdicts and reasons. With a filter of anything else there is no chart.
    """
    asked = _Asked.of(request)
    wanted, query = asked.wanted, asked.query
    before = _place_of(request)
    seconds = audit_search.LOOK_UP_SECONDS if wanted.looks_up else audit_search.SECONDS

    def read(connection: Connection) -> dict[str, Any]:
        found = audit_search.search(
            connection, wanted, limit=_A_PAGE, before=before, seconds=seconds
        )
        older = None
        if found.older is not None:
            older = link(LIST, query | {"before": found.older})
        return asked.read_chart(connection, request.server.hours) | {
            "rows": found.rows,
            "looked_back_to": found.looked_back_to,
            "older": older,
            "newest": link(LIST, query) if before is not None else None,
            "query": {name: "" if value is None else str(value) for name, value in query.items()},
            "is_filtered": wanted != AuditFilter(),
            "choices": {
                "range": [(each.value, f"last {each.words.removeprefix('1 ')}") for each in Recent],
                "result": _named(Verdict),
                "reason": _named(Reason),
                "repeat": _named(Repeat),
            },
            "csv": link(CSV, query),
            "json_lines": link(JSON_LINES, query),
            "nameless": link(CSV, query | {"serials": "no"}),
        }

    return await render_page(request, "validations.html", read)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The filter of a request as it was given, and the time of the chart beside the list."""

    wanted: AuditFilter
    query: dict[str, object]
    charted: TimeRange | None
    """None if the counters cannot tell what the filter asks for."""

    @classmethod
    def of(cls, request: ApiRequest) -> "_Asked":
        """Return what a request asks for. Raises RequestError."""
        now = request.server.authority.database.clock.now()
        since, until = parse_time(request, "since"), parse_time(request, "until")
        recent = parse_choice(request, "range", Recent)
        wanted = _filter_of(request)
        others = replace(wanted, result=None, reason=None, since=None, until=None)
        charted = None
        if others == AuditFilter():
            charted = recent_range(recent or Recent.DAY, now)
            if since is not None or until is not None:
                charted = between(wanted.since, until, now, charted.until - charted.since)
        query: dict[str, object] = {
            "result": wanted.result,
            "reason": wanted.reason,
            "repeat": wanted.repeat,
            "device": wanted.device_serial,
            "table": wanted.table_id,
            "caller": wanted.caller,
            "range": recent,
            "since": as_field(since),
            "until": as_field(until),
            "request_id": wanted.request_id,
            "token_digest": None if wanted.token_digest is None else wanted.token_digest.hex(),
        }
        return cls(wanted, query, charted)

    def read_chart(self, connection: Connection, hours: HourCounts) -> dict[str, Any]:
        """Return the chart and the numbers by result, with links to the rows of each."""
        if self.charted is None:
            return {"chart": None}
        chart = read_chart(connection, self.charted, hours)
        others = {name: self.query[name] for name in ("result", "reason")}
        verdicts = chart.verdicts
        times = self.charted.query
        is_any = self.wanted.result is None and self.wanted.reason is None
        results = [("all", sum(verdicts.values()), link(LIST, times), is_any)]
        for verdict in Verdict:
            url = link(LIST, {"result": verdict.value, **times})
            results.append((verdict.value, verdicts[verdict], url, self.wanted.result is verdict))
        return chart_values(chart, LIST, others) | {"results": results}


@router.get(ONE)
async def show_validation(request: ApiRequest) -> Response:
    """Show one validation: what was asked, the reason in words, the caller, earlier submissions."""
    place = _place_of(request, "at")
    if place is None:
        raise refused("at is the place of a validation.")

    def read(connection: Connection) -> dict[str, Any]:
        found = validation_details.find_validation(connection, place)
        entry = found.entry
        at = entry.validated_at
        around = between(at - _AROUND, at + _AROUND, at + _AROUND, 2 * _AROUND)
        return {
            "found": found,
            "entry": entry,
            "story": found.story,
            "names": validation_details.name_callers(connection, [found]),
            "of_caller": link(LIST, {"caller": entry.caller}),
            "around": link(LIST, around.query),
            "of_request": link(LIST, {"request_id": entry.request_id}),
            "of_token": None
            if entry.token_digest is None
            else link(LIST, {"token_digest": entry.token_digest.hex()}),
        }

    return await render_page(request, "validation.html", read)


@router.get(CSV)
async def export_csv(request: ApiRequest) -> Response:
    """Stream the rows that match the filter, newest first, as CSV (RFC 4180)."""
    return _export(request, _as_csv, ",".join(AuditEntry._fields) + "\r\n", "text/csv", "csv")


@router.get(JSON_LINES)
async def export_json_lines(request: ApiRequest) -> Response:
    """Stream the rows that match the filter, newest first, as one JSON object a line."""
    return _export(request, _as_json_lines, "", "application/jsonl", "jsonl")


def _export(
    request: ApiRequest, write: Writer, head: str, media_type: str, ending: str
) -> StreamingResponse:
    wanted = _filter_of(request)
    serials = parse_serials(request)
    # The export starts at this moment and goes back in time. It leaves out rows that are added
    # later.
    now = request.server.authority.database.clock.now()
    before = Cursor(now if wanted.until is None else min(wanted.until, now), 0)

    def read(connection: Connection, place: Cursor) -> tuple[str, Cursor | None]:
        found = audit_search.search(connection, wanted, limit=_A_PIECE, before=place)
        rows = found.rows
        if not serials:
            rows = [row._replace(device_serial=None) for row in rows]
        return write(rows), found.older

    name = f"validations-{now:%Y%m%dT%H%M%SZ}.{ending}"
    return stream_export(request, read, before, file_name=name, media_type=media_type, head=head)


def _as_csv(rows: Sequence[AuditEntry]) -> str:
    written = io.StringIO()
    writer = csv.writer(written)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return written.getvalue()


def _cell(value: object) -> object:
    """Return a CSV cell. Text that a spreadsheet would run as a formula gets a leading quote."""
    if isinstance(value, datetime):
        return as_time(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def _as_json_lines(rows: Sequence[AuditEntry]) -> str:
    return "".join(
        json.dumps({name: _as_json(value) for name, value in row._asdict().items()}) + "\n"
        for row in rows
    )


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return as_time(value)
    return value.hex() if isinstance(value, bytes) else value


def as_time(moment: datetime) -> str:
    """Format a time as RFC 3339 in UTC, as the whole API does."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _filter_of(request: ApiRequest) -> AuditFilter:
    """Return the filter of a request. A range restricts the time, as `since` and `until` do."""
    since = parse_time(request, "since")
    recent = parse_choice(request, "range", Recent)
    if recent is not None:
        begins = request.server.authority.database.clock.now() - recent.length
        since = begins if since is None else max(since, begins)
    return AuditFilter(
        result=parse_choice(request, "result", Verdict),
        reason=parse_choice(request, "reason", Reason),
        repeat=parse_choice(request, "repeat", Repeat),
        device_serial=parse_name(request, "device"),
        table_id=parse_number(request, "table"),
        caller=parse_text(request, "caller"),
        since=since,
        until=parse_time(request, "until"),
        request_id=parse_text(request, "request_id"),
        token_digest=parse_digest(request, "token_digest"),
    )


def _named(kind: type[StrEnum]) -> list[tuple[str, str]]:
    """Return the values of an enum, each with its text for people."""
    return [(each.value, each.value.replace("_", " ")) for each in kind]


def _place_of(request: ApiRequest, name: str = "before") -> Cursor | None:
    """Return the cursor in a query parameter, or None. Raises RequestError."""
    value = parse_text(request, name)
    if value is None:
        return None
    try:
        return Cursor.parse(value)
    except ValueError:
        raise refused(f"{name} is a place that an earlier page named.") from None
