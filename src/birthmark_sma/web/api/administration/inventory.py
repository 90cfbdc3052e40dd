"""GET /api/v1/tables, /api/v1/issuers and /api/v1/statistics: what the authority has and does."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import OpenCa
from birthmark_sma.authority.key_tables.epochs import list_states
from birthmark_sma.authority.key_tables.usage_store import list_figures
from birthmark_sma.authority.operations import statistics
from birthmark_sma.authority.representations.certificates import ca_as_json
from birthmark_sma.errors import UnknownKeyTableError
from birthmark_sma.web.api import examples as api_examples
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    answer,
    check_query,
    parse_flag,
    parse_limit,
    path_parameter,
    respond,
)
from birthmark_sma.web.api.administration.documentation import PAGE, described, query
from birthmark_sma.web.api.administration.responses import (
    IssuersResponse,
    KeyTableResponse,
    KeyTablesResponse,
)
from birthmark_sma.web.api.health import StatsResponse
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import parse_number
from birthmark_sma.web.routes import ISSUERS, KEY_TABLE, KEY_TABLES, STATISTICS
from birthmark_sma.web.server_state import ApiRequest

_SECONDS = 30.0

router = APIRouter(tags=["administer"])


async def list_tables(request: ApiRequest) -> Response:
    """Return a page of key tables with their epochs, by id."""
    check_query(request, "open", "limit", "cursor")
    limit, only_open = parse_limit(request), parse_flag(request, "open")
    after = parse_number(request, "cursor")

    def read(connection: Connection) -> dict[str, Any]:
        states = list_states(connection)
        overlaps = [each for each in states if each.accepted_until is not None]
        found = [
            each
            for each in (overlaps if only_open else states)
            if after is None or each.table_id > after
        ]
        return {
            "total": len(states),
            "open_overlaps": len(overlaps),
            "tables": [asdict(each) for each in found[:limit]],
            "next_cursor": str(found[limit - 1].table_id) if len(found) > limit else None,
        }

    return await answer(request, read)


async def show_table(request: ApiRequest) -> Response:
    """Return a key table with its epoch and its use. Raises UnknownKeyTableError."""
    check_query(request)
    name = path_parameter(request)

    def read(connection: Connection) -> dict[str, Any]:
        figures = {str(each.table_id): each for each in list_figures(connection)}
        if name not in figures:
            raise UnknownKeyTableError(
                f"There is no key table {name}: this authority has {len(figures):,}, from 0 on."
            )
        states = {str(each.table_id): each for each in list_states(connection)}
        return asdict(states[name]) | asdict(figures[name])

    return await answer(request, read)


async def list_issuers(request: ApiRequest) -> Response:
    """Return all CAs with their certificates, states, and the number of devices under each."""
    check_query(request)
    clock = request.server.authority.database.clock

    def read(connection: Connection) -> dict[str, Any]:
        cas = [OpenCa(each, each.load()) for each in ca_store.list_cas(connection)]
        devices, now = ca_store.count_devices_under(connection), clock.now()
        return {"issuers": [ca_as_json(ca, devices, now) for ca in cas], "next_cursor": None}

    return await answer(request, read)


async def show_statistics(request: ApiRequest) -> Response:
    """Return the number of devices, and the verdicts of the last 24 hours, as /stats does."""
    check_query(request)
    database = request.server.authority.database
    figures = await run_with_timeout(
        request.server.slow, lambda: statistics.collect_stats(database), _SECONDS
    )
    return respond(StatsResponse.of(figures).model_dump())


router.add_api_route(
    endpoint=list_tables,
    **described(
        KEY_TABLES,
        "List key tables",
        KeyTablesResponse,
        examples.TABLES,
        parameters=(
            query("open", "`true`: only tables whose overlap is open", enum=["true", "false"]),
            *PAGE,
        ),
    ),
)
router.add_api_route(
    endpoint=show_table,
    **described(
        KEY_TABLE,
        "Read a key table",
        KeyTableResponse,
        examples.TABLE,
        of_path=("table_id", "The id of the table", "42"),
        errors=("unknown-key-table",),
    ),
)
router.add_api_route(
    endpoint=list_issuers,
    **described(ISSUERS, "List CAs and their certificates", IssuersResponse, examples.ISSUERS),
)
router.add_api_route(
    endpoint=show_statistics,
    **described(
        STATISTICS,
        "Read the statistics",
        StatsResponse,
        api_examples.STATS,
        description="The same as `/stats`.",
    ),
)
