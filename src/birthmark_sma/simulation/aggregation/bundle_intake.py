"""The HTTP door of a simulated aggregation server, for cameras that somebody else builds.

    POST /bundles   a bundle; 200 {"ending": ..., "detail": ..., "bundle_id": ...} once it is judged
    GET  /          what this is

409 with the same body for a bundle that was taken before; 415 for a body that is not declared JSON,
413 for one that is too large, 422 for a bundle that cannot be relied on, whatever is tried again;
503 with Retry-After where the authority could not be asked: send it again.
"""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from birthmark_sma.protocol.bundle import MAX_BUNDLE_BYTES
from birthmark_sma.simulation.aggregation.aggregation_server import Aggregator, Judgement
from birthmark_sma.simulation.expected_outcomes import Outcome

_PATIENCE = 20.0
_RETRY_AFTER = "2"
_STATUSES = {
    Outcome.DUPLICATE: 409,
    Outcome.MALFORMED: 422,
    Outcome.WRONG_TIME: 422,
    Outcome.WRONG_CERTIFICATE: 422,
    Outcome.WRONG_SIGNATURE: 422,
    Outcome.DUPLICATE: 409,
    Outcome.UNDECIDED: 503,
}

Told = Callable[[Judgement], None]


def reception(aggregator: Aggregator, told: Told) -> Starlette:
    """Return the ASGI application. `told` hears of each judgement."""

    async def take(request: Request) -> Response:
        declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if declared != "application/json":
            return JSONResponse({"detail": "A bundle is sent as application/json."}, 415)
        text = bytearray()
        async for part in request.stream():
            text += part
            if len(text) > MAX_BUNDLE_BYTES:
                return JSONResponse({"detail": "A bundle is smaller than that."}, 413)
        until = asyncio.get_running_loop().time() + _PATIENCE
        judgement = await aggregator.take(bytes(text), until=until)
        told(judgement)
        return JSONResponse(
            {
                "ending": judgement.ending,
                "detail": judgement.detail,
                "bundle_id": None if judgement.bundle_id is None else judgement.bundle_id.hex(),
            },
            _STATUSES.get(judgement.ending, 200),
            {"Retry-After": _RETRY_AFTER} if judgement.ending is Outcome.UNDECIDED else None,
        )

    async def describe(request: Request) -> Response:  # noqa: ARG001  a route's shape
        return JSONResponse({"service": "simulated aggregation server", "post": "/bundles"})

    return Starlette(
        routes=[
            Route("/bundles", take, methods=["POST"]),
            Route("/", describe, methods=["GET"]),
        ]
    )
