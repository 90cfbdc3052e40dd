"""GET /api/v1/validations and /api/v1/acts: search both trails, and read one request or act."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.responses import Response

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.actor import ActKind, Source
from birthmark_sma.authority.acts.search import ActFilter, RecordedAct
from birthmark_sma.authority.devices.revocation import find_serial
from birthmark_sma.authority.representations.validations import page_as_json, request_as_json
from birthmark_sma.authority.validation import audit_search, validation_details
from birthmark_sma.authority.validation.audit_search import AuditFilter, Cursor
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    answer,
    check_query,
    check_serials_allowed,
    parse_limit,
    path_parameter,
    respond,
)
from birthmark_sma.web.api.administration.documentation import PAGE, described, query
from birthmark_sma.web.api.administration.responses import (
    ActResponse,
    ActsResponse,
    RequestResponse,
    ValidationsResponse,
)
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import (
    parse_choice,
    parse_digest,
    parse_name,
    parse_number,
    parse_text,
    parse_time,
    refused,
)
from birthmark_sma.web.routes import ACT, ACTS, VALIDATION, VALIDATIONS
from birthmark_sma.web.server_state import ApiRequest

_TIMES = (
    query("since", "From this time on (ISO 8601, UTC)"),
    query("until", "Before this time (ISO 8601, UTC)"),
)
_OF_VALIDATIONS = (
    *("result", "reason", "repeat", "device", "table", "caller", "request_id", "token_digest"),
    *("since", "until", "limit", "cursor"),
)
_OF_ACTS = (
    *("act", "actor", "source", "request_id", "subject", "kind", "since", "until"),
    *("limit", "cursor"),
)
_WHOLE_SECONDS = 30.0  # to search the whole audit log for a request
_MOST_ID = 2**63 - 1

router = APIRouter(tags=["administer"])


async def list_validations(request: ApiRequest) -> Response:
    """Return a page of the audit log, the newest rows first."""
    check_query(request, *_OF_VALIDATIONS)
    limit, place = parse_limit(request), _place_of(request)
    device = parse_name(request, "device")
    if device is not None:
        check_serials_allowed(request)  # who filters by a serial learns whose the rows are
    chosen: dict[str, Any] = {
        "result": parse_choice(request, "result", Verdict),
        "reason": parse_choice(request, "reason", Reason),
        "repeat": parse_choice(request, "repeat", Repeat),
        "table_id": parse_number(request, "table"),
        "caller": parse_text(request, "caller"),
        "request_id": parse_text(request, "request_id"),
        "token_digest": parse_digest(request, "token_digest"),
        "since": parse_time(request, "since"),
        "until": parse_time(request, "until"),
    }

    def read(connection: Connection) -> dict[str, Any]:
        serial = None if device is None else find_serial(connection, device)
        wanted = AuditFilter(device_serial=serial, **chosen)
        page = audit_search.search(
            connection, wanted, limit=limit, before=place, seconds=audit_search.LOOK_UP_SECONDS
        )
        return _allowed(request, page_as_json(page))

    return await answer(request, read)


async def show_request(request: ApiRequest) -> Response:
    """Return the validations of a request. Raises UnknownValidationError."""
    check_query(request)
    request_id, database = path_parameter(request), request.server.authority.database

    def read() -> Response:
        found = validation_details.find_request(database, request_id)
        with database.read() as connection:
            names = validation_details.name_callers(connection, found)
        return respond(_allowed(request, request_as_json(request_id, found, names)))

    return await run_with_timeout(request.server.slow, read, _WHOLE_SECONDS)


def _allowed(request: ApiRequest, found: dict[str, Any]) -> dict[str, Any]:
    """Return validations without serials if the access key may not read them."""
    if not request.context.known_caller.may_read_serials:
        for each in found["validations"]:
            each["device_serial"] = None
    return found


def _act_as_json(request: ApiRequest, act: RecordedAct) -> dict[str, Any]:
    """Return an act, without what names a device if the access key may not read serials."""
    shown = asdict(act)
    return act_search.leave_out_serials(shown) if _is_nameless(request, act) else shown


def _is_nameless(request: ApiRequest, act: RecordedAct) -> bool:
    is_named = act_search.names_devices(act.subject_kind)
    return is_named and not request.context.known_caller.may_read_serials


def _place_of(request: ApiRequest) -> Cursor | None:
    cursor = parse_text(request, "cursor")
    try:
        return None if cursor is None else Cursor.parse(cursor)
    except ValueError:
        raise refused("cursor is next_cursor of the page before.") from None


async def list_acts(request: ApiRequest) -> Response:
    """Return a page of acts, the newest first."""
    check_query(request, *_OF_ACTS)
    limit, before = parse_limit(request), _id_of(parse_text(request, "cursor"))
    wanted = ActFilter(
        act=parse_choice(request, "act", ActKind),
        actor=parse_text(request, "actor"),
        source=parse_choice(request, "source", Source),
        request_id=parse_text(request, "request_id"),
        subject=parse_name(request, "subject"),
        subject_kind=parse_text(request, "kind"),
        since=parse_time(request, "since"),
        until=parse_time(request, "until"),
    )

    kind = wanted.subject_kind
    if wanted.subject is not None and (kind is None or act_search.names_devices(kind)):
        check_serials_allowed(request)

    def read(connection: Connection) -> dict[str, Any]:
        found = act_search.search(connection, wanted, limit=limit + 1, before=before)
        return {
            "acts": [_act_as_json(request, each) for each in found[:limit]],
            "next_cursor": str(found[limit - 1].id) if len(found) > limit else None,
        }

    return await answer(request, read)


async def show_act(request: ApiRequest) -> Response:
    """Return an act and a page of its subjects, sorted by name. Raises UnknownActError."""
    check_query(request, "limit", "cursor")
    limit, after = parse_limit(request), parse_name(request, "cursor") or ""
    name = path_parameter(request)
    if not (name.isascii() and name.isdigit() and int(name) <= _MOST_ID):
        raise HTTPException(404)

    def read(connection: Connection) -> dict[str, Any]:
        act = act_search.find(connection, int(name))
        found = []  # the cursor of a page of devices is a serial
        if not _is_nameless(request, act):
            found = act_search.list_subjects(connection, act.id, limit=limit + 1, after=after)
        return _act_as_json(request, act) | {
            "listed": [asdict(each) for each in found[:limit]],
            "next_cursor": found[limit - 1].name if len(found) > limit else None,
        }

    return await answer(request, read)


def _id_of(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and int(cursor) <= _MOST_ID):
        raise refused("cursor is next_cursor of the page before.")
    return int(cursor)


router.add_api_route(
    endpoint=list_validations,
    **described(
        VALIDATIONS,
        "Search the audit log",
        ValidationsResponse,
        examples.VALIDATIONS,
        description="A search for something rare reads the log step by step for about 2 seconds."
        " Then `looked_back_to` is set, and `next_cursor` continues.",
        parameters=(
            query("result", "The verdict", enum=[each.value for each in Verdict]),
            query("reason", "The reason of the verdict", enum=[each.value for each in Reason]),
            query("repeat", "The kind of repeat", enum=[each.value for each in Repeat]),
            query("device", "The device's serial, in any case"),
            query("table", "The key table of the token", type="integer", minimum=0),
            query("caller", "The id of the caller's access key, or the address of one without"),
            query("request_id", "The `X-Request-ID` of the response, whole"),
            query("token_digest", "The digest of the camera token: 32 hex digits"),
            *_TIMES,
            *PAGE,
        ),
        errors=("unknown-device",),
    ),
)
router.add_api_route(
    endpoint=show_request,
    **described(
        VALIDATION,
        "Read the validations of a request",
        RequestResponse,
        examples.REQUEST,
        description="Verdict, reason in words, what to do, and the other submissions of each token",
        of_path=(
            "request_id",
            "The `X-Request-ID` of the response, percent-encoded",
            "5d41b7a09c2e-1f3",
        ),
        errors=("unknown-validation",),
    ),
)
router.add_api_route(
    endpoint=list_acts,
    **described(
        ACTS,
        "Search the trail of acts",
        ActsResponse,
        examples.ACTS,
        parameters=(
            query("act", "The kind of act", enum=[each.value for each in ActKind]),
            query("actor", "The name of the actor"),
            query("source", "The way by which it came", enum=[each.value for each in Source]),
            query("request_id", "The `X-Request-ID` of the response, whole"),
            query("subject", "The device, access key, table, CA or order, as it is registered"),
            query("kind", "The kind of the subject, such as device"),
            *_TIMES,
            *PAGE,
        ),
    ),
)
router.add_api_route(
    endpoint=show_act,
    **described(
        ACT,
        "Read an act with its subjects",
        ActResponse,
        examples.ACT,
        of_path=("act_id", "The id of the act", "17"),
        parameters=PAGE,
        errors=("unknown-act",),
    ),
)
