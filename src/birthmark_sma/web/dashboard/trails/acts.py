"""Dashboard page "Acts": search the administrative acts, show one of them, export JSON Lines."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from birthmark_sma.authority.acts import search
from birthmark_sma.authority.acts.actor import ActKind, Source
from birthmark_sma.authority.acts.search import ActFilter, Place
from birthmark_sma.web.dashboard.actions.undo import find_undo
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.dashboard.trails.audit_log import as_time
from birthmark_sma.web.dashboard.trails.export import parse_serials, stream_export
from birthmark_sma.web.query_params import (
    as_field,
    link,
    parse_choice,
    parse_name,
    parse_number,
    parse_text,
    parse_time,
    refused,
)
from birthmark_sma.web.server_state import ApiRequest

LIST = "/dashboard/acts"
ACT = "/dashboard/act"
JSON_LINES = "/dashboard/acts.jsonl"

_A_PAGE = 50  # acts of a page, and subjects of an act

router = APIRouter(include_in_schema=False)


@router.get(LIST)
async def list_acts(request: ApiRequest) -> Response:
    """Show a page of the acts that match the filter, newest first."""
    wanted = _filter_of(request)
    before = parse_number(request, "before")
    query = {
        "act": wanted.act,
        "source": wanted.source,
        "actor": wanted.actor,
        "request_id": wanted.request_id,
        "subject": wanted.subject,
        "kind": wanted.subject_kind,
        "since": as_field(wanted.since),
        "until": as_field(wanted.until),
    }

    def read(connection: Connection) -> dict[str, Any]:
        # One more than a page, to know whether there is a next page.
        found = search.search(connection, wanted, limit=_A_PAGE + 1, before=before)
        shown = found[:_A_PAGE]
        more = len(found) > _A_PAGE
        return {
            "acts": shown,
            "query": {name: "" if value is None else str(value) for name, value in query.items()},
            "is_filtered": wanted != ActFilter(),
            "choices": {
                "act": [each.value for each in ActKind],
                "source": [each.value for each in Source],
            },
            "newest": link(LIST, query) if before is not None else None,
            "older": link(LIST, query | {"before": shown[-1].id}) if more else None,
            "json_lines": link(JSON_LINES, query),
            "nameless": link(JSON_LINES, query | {"serials": "no"}),
        }

    return await render_page(request, "acts.html", read)


@router.get(ACT)
async def show_act(request: ApiRequest) -> Response:
    """Show an act with its subjects, before and after it."""
    act_id = parse_number(request, "id")
    if act_id is None:
        raise refused("id is the number of the act.")
    after = parse_name(request, "after") or ""
    is_done = parse_text(request, "done") is not None

    def read(connection: Connection) -> dict[str, Any]:
        act = search.find(connection, act_id)
        found = search.list_subjects(connection, act_id, limit=_A_PAGE + 1, after=after)
        shown = found[:_A_PAGE]
        query = {"id": act_id}
        more = len(found) > _A_PAGE
        return {
            "act": act,
            "is_done": is_done,
            "undo": find_undo(act),
            "more": {name.replace("_", " "): _text(value) for name, value in act.more.items()},
            "changes": _compare(act.before, act.after),
            "subjects": [(each.name, _compare(each.before, each.after)) for each in shown],
            "first_page": link(ACT, query) if after else None,
            "next_page": link(ACT, query | {"after": shown[-1].name}) if more else None,
        }

    return await render_page(request, "act.html", read)


@router.get(JSON_LINES)
async def export_json_lines(request: ApiRequest) -> StreamingResponse:
    """Stream the acts that match the filter, newest first, as `sma acts export` writes them."""
    wanted = _filter_of(request)
    serials = parse_serials(request)

    def read(connection: Connection, place: Place) -> tuple[str, Place | None]:
        rows, following = search.read_piece(connection, wanted, place, serials=serials)
        return "".join(json.dumps(row, default=as_time) + "\n" for row in rows), following

    now = request.server.authority.database.clock.now()
    name = f"acts-{now:%Y%m%dT%H%M%SZ}.jsonl"
    return stream_export(request, read, Place(), file_name=name, media_type="application/jsonl")


def _filter_of(request: ApiRequest) -> ActFilter:
    return ActFilter(
        act=parse_choice(request, "act", ActKind),
        actor=parse_text(request, "actor"),
        source=parse_choice(request, "source", Source),
        request_id=parse_text(request, "request_id"),
        subject=parse_name(request, "subject"),
        subject_kind=parse_text(request, "kind"),
        since=parse_time(request, "since"),
        until=parse_time(request, "until"),
    )


def _compare(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[tuple[str, str, str]]:
    """Return the name of each fact, and its values before and after."""
    old, new = before or {}, after or {}
    return [
        (name.replace("_", " "), _text(old.get(name)), _text(new.get(name)))
        for name in sorted(old.keys() | new.keys())
    ]


def _text(value: object) -> str:
    if value is None:
        return "\N{EN DASH}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
