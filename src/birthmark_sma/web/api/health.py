"""GET /health and its probes, /stats, and the two CA certificates.

Operators, load balancers and verifiers call these endpoints. Each database query has a timeout and
runs in a thread, so that a database that hangs never blocks the event loop.
"""

from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority.authority import INTERMEDIATE_PATH, ROOT_PATH
from birthmark_sma.authority.operations import statistics
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.models import HealthResponse, ProbeResponse, StatsResponse
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.server_state import ApiRequest

SERVICE = "birthmark-sma"
_HEALTH_SECONDS = 4.0  # timeouts of database queries
_STATS_SECONDS = 30.0

router = APIRouter(tags=["operate"])


@router.get(
    "/health",
    summary="Whether the authority and its database answer",
    response_model=None,
    responses={
        **openapi.success(HealthResponse, "The database answers", healthy=examples.HEALTHY),
        503: {
            "model": HealthResponse,
            "description": "The database does not answer",
            "content": {"application/json": {"example": examples.UNHEALTHY}},
        },
        **openapi.problems("/health", 429),
    },
)
async def health(request: ApiRequest) -> Response:
    """Ask the database, and say no more than whether it answers and takes what is to be recorded.

    A writer whose last batch failed counts for ten seconds.
    """
    authority = request.server.authority
    try:
        registered = await run_with_timeout(
            request.server.probes,  # threads of their own: slow queries do not delay probes
            lambda: statistics.count_registered(authority.database),
            _HEALTH_SECONDS,
        )
        # The database may answer queries and still refuse to record validations.
        if (failure := authority.validator.failure) is not None:
            raise failure.again()
    except DatabaseUnavailableError:
        return _health(
            HealthResponse(
                status="unhealthy", service=SERVICE, version=__version__, database="disconnected"
            ),
            503,
        )
    return _health(
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
    summary="Whether the process answers at all",
    response_model=None,
    responses={**openapi.success(ProbeResponse, "It does"), **openapi.problems("/health/live")},
)
async def live(request: ApiRequest) -> Response:  # noqa: ARG001  every endpoint gets it
    """Say so. Restart the process where this does not answer."""
    return JSONResponse(ProbeResponse(status="alive").model_dump(exclude_none=True))


@router.get(
    "/health/ready",
    summary="Whether requests should be sent here",
    response_model=None,
    responses={
        **openapi.success(ProbeResponse, "They should"),
        503: {"model": ProbeResponse, "description": "The database or the writer is away"},
        **openapi.problems("/health/ready"),
    },
)
async def ready(request: ApiRequest) -> Response:
    """Ask the database and the writer."""
    authority = request.server.authority
    try:
        await run_with_timeout(request.server.probes, authority.database.ping, _HEALTH_SECONDS)
    except DatabaseUnavailableError:
        return JSONResponse({"status": "not ready"}, 503)
    if not authority.validator.running:
        return JSONResponse({"status": "not ready"}, 503)
    answer = ProbeResponse(status="ready", clock=authority.database.clock.complaint())
    return JSONResponse(answer.model_dump(exclude_none=True))


@router.get(
    "/stats",
    summary="Devices, and the verdicts of the last 24 hours",
    response_model=None,
    responses={
        **openapi.success(StatsResponse, "The figures", figures=examples.STATS),
        **openapi.problems("/stats", 429, 500, 503),
    },
)
async def stats(request: ApiRequest) -> Response:
    """Count, and phrase."""
    authority = request.server.authority
    figures = await run_with_timeout(
        request.server.slow,
        lambda: statistics.collect_stats(authority.database),
        _STATS_SECONDS,
    )
    return JSONResponse(StatsResponse.of(figures).model_dump())


def _download(media_type: str, what: str) -> dict[int | str, dict[str, object]]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": what, "content": {media_type: schema}}}


@router.get(
    ROOT_PATH,
    summary="The root certificate (DER)",
    response_class=Response,
    responses={
        **_download("application/pkix-cert", "The root that verifiers pin"),
        **openapi.problems(ROOT_PATH, 429),
    },
)
async def root_certificate(request: ApiRequest) -> Response:
    """Return the root certificate."""
    certificate = request.server.authority.root
    return Response(certificate.public_bytes(Encoding.DER), media_type="application/pkix-cert")


@router.get(
    INTERMEDIATE_PATH,
    summary="The intermediate certificate (DER)",
    response_class=Response,
    responses={
        **_download("application/pkix-cert", "The issuer of device certificates"),
        **openapi.problems(INTERMEDIATE_PATH, 429),
    },
)
async def intermediate_certificate(request: ApiRequest) -> Response:
    """Return the intermediate certificate: where the AIA of device certificates points."""
    certificate = request.server.authority.issuer.certificate
    return Response(certificate.public_bytes(Encoding.DER), media_type="application/pkix-cert")


def _health(answer: HealthResponse, status: int) -> JSONResponse:
    return JSONResponse(answer.model_dump(), status, {"Cache-Control": "no-store"})
