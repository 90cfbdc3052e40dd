"""Serve a simulated aggregation server over HTTP, to test cameras of other developers.

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

`sma simulate aggregator` calls it. It ends after a time, after a number of bundles, or on a signal.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from birthmark_sma.errors import AuthorityAwayError, ConfigurationError
from birthmark_sma.protocol.bundle import MAX_BUNDLE_BYTES
from birthmark_sma.simulation.aggregation.aggregation_server import Aggregator, Judgement
from birthmark_sma.simulation.expected_outcomes import Outcome
from birthmark_sma.simulation.target import Site

_ROOT_PATH = "/pki/root.crt"
_SECONDS = 10.0  # timeout of the request for the root certificate
_LAST_SECONDS = 5  # for open requests after the end
_MAX_CONNECTIONS = 256
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


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits after which the server exits: seconds and number of bundles."""

    seconds: float
    bundles: int


async def host_aggregator(
    site: Site, host: str, port: int, bounds: Bounds, *, ready: Callable[[str], None], told: Told
) -> None:
    """Serve until a limit or a signal. `ready` is called with the URL, `told` with each judgement.

    Raises AuthorityAwayError and ConfigurationError as `fetch_root` does. Raises ConfigurationError
    also if the address is in use.
    """
    client = site.aggregator_client(0)  # first: it checks the URL before any request
    try:
        aggregator = Aggregator(client, await asyncio.to_thread(fetch_root, site))
        listening = _listen(host, port)
        taken = 0

        def heard(judgement: Judgement) -> None:
            nonlocal taken
            taken += 1
            told(judgement)
            if taken >= bounds.bundles:
                server.should_exit = True

        server = uvicorn.Server(
            uvicorn.Config(
                _application(aggregator, heard),
                log_level="warning",
                access_log=False,
                lifespan="off",
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )
        name, number = listening.getsockname()[:2]
        ready(f"http://{f'[{name}]' if ':' in name else name}:{number}")

        def over() -> None:
            server.should_exit = True

        timer = asyncio.get_running_loop().call_later(bounds.seconds, over)
        await server.serve(sockets=[listening])
        timer.cancel()
    finally:
        await client.close()


def _application(aggregator: Aggregator, told: Told) -> Starlette:
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
        routes=[Route("/bundles", take, methods=["POST"]), Route("/", describe, methods=["GET"])]
    )


def fetch_root(site: Site) -> x509.Certificate:
    """Return the authority's root certificate.

    Raises AuthorityAwayError if the authority does not answer. Raises ConfigurationError if the
    certificate cannot be fetched or parsed, or if it does not have the pinned fingerprint.
    """
    headers = {"Authorization": f"Bearer {site.validate_keys[0]}"} if site.validate_keys else {}
    try:
        with site.http_client() as client:
            site.check_connection(client)
            url = site.url.rstrip("/") + _ROOT_PATH
            answer = client.get(url, headers=headers, timeout=_SECONDS)
        answer.raise_for_status()
        root = x509.load_der_x509_certificate(answer.content)
    except httpx2.TransportError as error:
        raise AuthorityAwayError(
            f"The authority at {site.url} does not answer ({error}). Start it, or name another URL."
        ) from None
    except (httpx2.HTTPError, ValueError) as error:
        raise ConfigurationError(
            f"The authority's root certificate cannot be fetched: {error}"
        ) from None
    pinned = site.root_fingerprint
    shown = root.fingerprint(hashes.SHA256()).hex()
    if pinned is not None and shown != pinned.lower().replace(":", ""):
        raise ConfigurationError(
            f"The authority's root certificate does not have the pinned fingerprint, but {shown}."
        )
    return root


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"The server cannot listen on {host}:{port}: {error.strerror or error}. Choose"
            " another port."
        ) from None
