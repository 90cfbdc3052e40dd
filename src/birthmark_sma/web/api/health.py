"""GET /health and its probes, and /stats.

Operators and load balancers call these endpoints. Each database query has a timeout and
runs in a thread, so that a database that hangs never blocks the event loop.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self, TypeVar

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations import statistics
from birthmark_sma.authority.operations.statistics import Stats
from birthmark_sma.config import Access
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict, rfc3339
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.server_state import ApiRequest

Result = TypeVar("Result")

SERVICE = "birthmark-sma"
_HEALTH_SECONDS = 4.0  # the longest that a probe waits for the database; then the same for /stats
_STATS_SECONDS = 30.0

router = APIRouter(tags=["operate"])


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class HealthResponse(_Model):
    """The state of the authority. It contains no internal details.

    On a server that asks for access keys, a caller without one gets the status alone.
    """

    status: Literal["healthy", "unhealthy"]
    service: str | None = None
    version: str | None = None
    database: Literal["connected", "disconnected"] | None = None
    devices_registered: int | None = None


class ProbeResponse(_Model):
    """The state of the process, for a probe."""

    status: Literal["alive", "ready", "not ready"]
    clock: str | None = Field(
        default=None,
        description="What is wrong with the clock of this machine. Absent if it is right.",
    )


class TopDevice(_Model):
    """A device, and the number of its PASSes today and yesterday (UTC)."""

    device_serial: str
    count: int


class HourOfVerdicts(_Model):
    """The verdicts of an hour (UTC). `hour` is its beginning. The last hour is not over yet."""

    hour: str
    PASS: int
    FAIL: int


class StatsResponse(_Model):
    """The number of devices, and the validations of the last 24 hours."""

    total_devices: int
    recent_validations_24h: dict[Verdict, int]
    fail_reasons_24h: dict[Reason, int]
    repeats_24h: Annotated[dict[Repeat, int], Field(description="Repeated camera tokens, by kind")]
    validations_per_hour: Annotated[
        list[HourOfVerdicts], Field(description="The last 24 hours that have begun, oldest first")
    ]
    top_devices: Annotated[list[TopDevice], Field(max_length=10)]
    devices_by_family: dict[str, int]
    key_tables: int
    since: str
    until: str

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Return the response for the counted statistics."""
        return cls(
            total_devices=stats.total_devices,
            recent_validations_24h={Verdict(k): n for k, n in stats.verdicts_24h.items()},
            fail_reasons_24h={Reason(k): n for k, n in stats.fail_reasons_24h.items()},
            repeats_24h={Repeat(k): n for k, n in stats.repeats_24h.items()},
            validations_per_hour=[
                HourOfVerdicts(hour=rfc3339(hour.begins), **hour.verdicts) for hour in stats.hours
            ],
            top_devices=[TopDevice(device_serial=s, count=n) for s, n in stats.top_devices],
            devices_by_family=stats.devices_by_family,
            key_tables=stats.key_tables,
            since=rfc3339(stats.since),
            until=rfc3339(stats.until),
        )


@router.get(
    "/health",
    summary="The state of the authority and its database",
    response_model=None,
    responses={
        **openapi.success(HealthResponse, "The database answers", healthy=examples.HEALTHY),
        503: {
            "model": HealthResponse,
            "description": "The database does not answer",
            "content": {"application/json": {"example": examples.UNHEALTHY}},
        },
        **openapi.problems("/health", 401, 429),
    },
)
async def health(request: ApiRequest) -> Response:
    """Return whether the database answers and takes what is to be recorded."""
    authority = request.server.authority
    try:
        registered = await _probe(request, lambda: statistics.count_registered(authority.database))
        check_writes(authority)  # the database may answer queries and still take no writes
    except DatabaseUnavailableError:
        return _health(
            request,
            HealthResponse(
                status="unhealthy", service=SERVICE, version=__version__, database="disconnected"
            ),
            503,
        )
    return _health(
        request,
        HealthResponse(
            status="healthy",
            service=SERVICE,
            version=__version__,
            database="connected",
            devices_registered=registered,
        ),
        200,
    )


@router.get(
    "/health/live",
    summary="Liveness probe",
    response_model=None,
    responses={
        **openapi.success(ProbeResponse, "The process answers"),
        **openapi.problems("/health/live"),
    },
)
async def live(request: ApiRequest) -> Response:  # noqa: ARG001  every endpoint gets it
    """Return that the process answers. Restart a process that does not."""
    return JSONResponse(ProbeResponse(status="alive").model_dump(exclude_none=True))


@router.get(
    "/health/ready",
    summary="Readiness probe",
    response_model=None,
    responses={
        **openapi.success(ProbeResponse, "Requests can be sent here"),
        503: {"model": ProbeResponse, "description": "The database does not take what is written"},
        **openapi.problems("/health/ready"),
    },
)
async def ready(request: ApiRequest) -> Response:
    """Return whether the database answers and takes what is to be recorded."""
    authority = request.server.authority
    try:
        check_writes(authority)
        await _probe(request, authority.database.ping)
    except DatabaseUnavailableError:
        return JSONResponse({"status": "not ready"}, 503)
    answer = ProbeResponse(status="ready", clock=authority.database.clock.complaint())
    return JSONResponse(answer.model_dump(exclude_none=True))


@router.get(
    "/stats",
    summary="The number of devices, and the verdicts of the last 24 hours",
    response_model=None,
    responses={
        **openapi.success(StatsResponse, "The statistics", figures=examples.STATS),
        **openapi.problems("/stats", 429, 500, 503),
    },
)
async def stats(request: ApiRequest) -> Response:
    """Return the number of devices, and the verdicts of the last 24 hours."""
    authority = request.server.authority
    figures = await run_with_timeout(
        request.server.slow,
        lambda: statistics.collect_stats(authority.database),
        _STATS_SECONDS,
    )
    return JSONResponse(StatsResponse.of(figures).model_dump())


async def _probe(request: ApiRequest, query: Callable[[], Result]) -> Result:
    """Run a query in a thread that slow queries of other requests do not delay.

    It runs again over a new connection if its connection was lost, which says nothing of the
    database.
    """
    return await run_with_timeout(request.server.probes, lambda: retry(query), _HEALTH_SECONDS)


def check_writes(authority: Authority) -> None:
    """Raise DatabaseUnavailableError if a process of this server cannot record its work.

    This only reads what the writers and `background.write_check` found.
    """
    for writer in authority.writers:
        if not writer.running:
            raise DatabaseUnavailableError("A writer has stopped")
        if (fault := writer.fault) is not None:
            raise fault.again()
    if authority.settings.processes > 1 and authority.figures.count_others_failing():
        raise DatabaseUnavailableError("Another process of this server cannot write")


def _health(request: ApiRequest, answer: HealthResponse, status: int) -> JSONResponse:
    """Return the response, or its status alone to a stranger on a server that asks for keys."""
    caller = request.context.caller
    shows_key = caller is not None and caller.key is not None
    is_open = request.server.authority.settings.resolved_access is Access.OPEN
    shown = answer.model_dump() if is_open or shows_key else {"status": answer.status}
    return JSONResponse(shown, status, {"Cache-Control": "no-store"})
