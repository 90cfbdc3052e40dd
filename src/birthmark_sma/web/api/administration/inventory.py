"""GET /api/v1/tables, /api/v1/issuers and /api/v1/statistics: what the authority has and does."""

from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.key_tables.epochs import list_states
from birthmark_sma.authority.key_tables.usage_store import list_figures
from birthmark_sma.authority.operations import statistics
from birthmark_sma.authority.representations import pages
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

    page = partial(pages.tables_page, only_open=only_open, limit=limit, after=after)
    return await answer(request, page)


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

    return await answer(request, lambda each: pages.list_issuers(each, clock.now()))


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
