"""Run a simulated aggregation server on a port, for `sma simulate aggregator`.

It ends after a time, after a number of bundles, or on a signal.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.simulation.aggregation.aggregation_server import Aggregator, Judgement
from birthmark_sma.simulation.aggregation.bundle_intake import reception
from birthmark_sma.simulation.target import Site

_ROOT_PATH = "/pki/root.crt"
_SECONDS = 10.0  # timeout of the request for the root certificate
_LAST_SECONDS = 5  # for open requests after the end
_MAX_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits after which the server exits: seconds and number of bundles."""

    seconds: float
    bundles: int


async def host_aggregator(
    site: Site,
    host: str,
    port: int,
    bounds: Bounds,
    *,
    ready: Callable[[str], None],
    told: Callable[[Judgement], None],
) -> None:
    """Serve until a limit or a signal. `ready` is called with the URL, `told` with each judgement.

    Raises ConfigurationError if the authority's root certificate cannot be fetched, or if the
    address is in use.
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
                reception(aggregator, heard),
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


def fetch_root(site: Site) -> x509.Certificate:
    """Return the authority's root certificate.

    Raises ConfigurationError if it cannot be fetched or parsed, or if it does not have the pinned
    fingerprint.
    """
    headers = {"Authorization": f"Bearer {site.validate_keys[0]}"} if site.validate_keys else {}
    try:
        with site.http_client() as client:
            site.check_trust(client)
            url = site.url.rstrip("/") + _ROOT_PATH
            answer = client.get(url, headers=headers, timeout=_SECONDS)
        answer.raise_for_status()
        root = x509.load_der_x509_certificate(answer.content)
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
