"""HTTP endpoints of a simulated aggregation server, to test cameras of other developers.

    POST /bundles   take a bundle; the response comes after its judgement
    GET  /          describe this server

| status | meaning of POST /bundles |
| --- | --- |
| 200 | the bundle is judged: {"ending": ..., "detail": ..., "bundle_id": ...} |
| 409 | the bundle was taken before; same body |
| 413 | the body is too large |
| 415 | the Content-Type is not application/json |
| 422 | the bundle cannot be verified; a retry does not help; same body |
| 503 | the authority gave no verdict in time; send it again after Retry-After; same body |
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

_PATIENCE = 20.0  # seconds to wait for a verdict; a camera waits 30 s for the response
_RETRY_AFTER = "2"
_STATUSES = {
    Outcome.DUPLICATE: 409,
    Outcome.MALFORMED: 422,
    Outcome.WRONG_TIME: 422,
    Outcome.WRONG_CERTIFICATE: 422,
    Outcome.WRONG_SIGNATURE: 422,
    Outcome.UNDECIDED: 503,
}

Told = Callable[[Judgement], None]


def reception(aggregator: Aggregator, told: Told) -> Starlette:
    """Return the ASGI application. `told` is called with each judgement."""

    async def take(request: Request) -> Response:
        declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if declared != "application/json":
            return JSONResponse(
                {"detail": "Send the bundle with the Content-Type application/json."}, 415
            )
        text = bytearray()
        async for part in request.stream():
            text += part
            if len(text) > MAX_BUNDLE_BYTES:
                return JSONResponse(
                    {"detail": f"A bundle has at most {MAX_BUNDLE_BYTES} bytes."}, 413
                )
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
