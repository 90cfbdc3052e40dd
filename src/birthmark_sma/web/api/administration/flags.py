"""GET /api/v1/flags and POST /api/v1/flags/review: devices far above their usual rate."""

from datetime import date
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.background import abuse_detection
from birthmark_sma.authority.representations import pages
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    answer,
    check_query,
    check_serials_allowed,
    parse_flag,
    parse_limit,
    perform,
    read_body,
)
from birthmark_sma.web.api.administration.documentation import PAGE, described, query
from birthmark_sma.web.api.administration.requests import ReviewFlagsRequest
from birthmark_sma.web.api.administration.responses import FlagsResponse, ReviewedFlagsResponse
from birthmark_sma.web.query_params import parse_name, refused
from birthmark_sma.web.routes import FLAGS, REVIEW_FLAGS
from birthmark_sma.web.server_state import ApiRequest

router = APIRouter(tags=["administer"])


async def show_flags(request: ApiRequest) -> Response:
    """Return a page of flags, the latest day first."""
    check_serials_allowed(request)
    check_query(request, "shadow", "reviewed", "limit", "cursor")
    limit, after = parse_limit(request), _place_of(parse_name(request, "cursor"))
    shadow, reviewed = parse_flag(request, "shadow"), parse_flag(request, "reviewed")

    return await answer(
        request,
        lambda each: pages.flags_page(
            each, shadow=shadow, reviewed=reviewed, limit=limit, after=after
        ),
    )


async def review_flags(request: ApiRequest) -> Response:
    """Mark the flags of a device as reviewed. Raises UnknownFlagError if there are none."""
    check_query(request)
    asked = await read_body(request, ReviewFlagsRequest)

    def work(transaction: Connection, actor: Actor) -> dict[str, Any]:
        serial, number = abuse_detection.set_reviewed(
            transaction, asked.device_serial, actor, asked.day
        )
        return {"device_serial": serial, "reviewed": number}

    return await perform(request, asked, work)


def _place_of(cursor: str | None) -> tuple[date, str] | None:
    if cursor is None:
        return None
    day, _, serial = cursor.partition(" ")
    try:
        return date.fromisoformat(day), serial
    except ValueError:
        raise refused("cursor is next_cursor of the page before.") from None


router.add_api_route(
    endpoint=show_flags,
    **described(
        FLAGS,
        "List flagged devices",
        FlagsResponse,
        examples.FLAGS,
        parameters=(
            query("reviewed", "`true`: also reviewed flags", enum=["true", "false"]),
            query("shadow", "`true`: the flags of shadow mode instead", enum=["true", "false"]),
            *PAGE,
        ),
    ),
)
router.add_api_route(
    endpoint=review_flags,
    **described(
        REVIEW_FLAGS,
        "Mark the flags of a device as reviewed",
        ReviewedFlagsResponse,
        examples.REVIEWED_FLAGS,
        description="The device is not flagged again today. Its status does not change.",
        body=ReviewFlagsRequest,
        errors=("unknown-flag",),
    ),
)
