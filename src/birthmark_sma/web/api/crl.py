"""GET /pki/intermediate.crl and /pki/root.crl: serve the stored revocation lists (RFC 5280).

`authority.ca.crl_publication` signs and stores the lists; this module never does. Every process
serves the newest stored list.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from birthmark_sma.authority.authority import CRL_PATH, ROOT_CRL_PATH
from birthmark_sma.authority.ca.crl_cache import ServedCrl, ServedCrls
from birthmark_sma.authority.ca.crl_store import INTERMEDIATE, ROOT
from birthmark_sma.errors import (
    CrlNotPublishedError,
    DatabaseUnavailableError,
    RootCrlNotPublishedError,
)
from birthmark_sma.web.api import openapi
from birthmark_sma.web.middleware import conditional
from birthmark_sma.web.middleware.timeouts import run_with_timeout

_SECONDS = 4.0  # the timeout of one database query
# A request just after a server's first start waits about this long for the first list to be
# published, and looks for it at this interval.
_FIRST_SECONDS = 10.0
_FIRST_LOOK_SECONDS = 0.2
_PIECE_BYTES = 65_536
_MEDIA_TYPE = "application/pkix-crl"
_LIST = {_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(tags=["operate"])


@router.get(
    CRL_PATH,
    summary="The revoked device certificates (DER, RFC 5280)",
    description="A new list is published within seconds of each revocation, and every 6 hours. Ask"
    " again with `If-None-Match`: 304 says that the list is still the newest.",
    response_class=Response,
    responses={
        200: {"description": "The newest list", "content": _LIST},
        304: {"description": "The list that `If-None-Match` names is the newest"},
        **openapi.problems(CRL_PATH, 429, 500, 503),
    },
)
async def intermediate_list(request: Request) -> Response:
    """Return the newest list of the intermediate CA.

    Before the first list is published, the request waits for about 10 seconds. Then it raises
    CrlNotPublishedError.
    """
    crls: Crls = request.app.state.crls
    crl = await crls.intermediate.read()
    tries = int(_FIRST_SECONDS / _FIRST_LOOK_SECONDS)
    while crl is None and tries:
        tries -= 1
        await asyncio.sleep(_FIRST_LOOK_SECONDS)
        crl = await crls.intermediate.read()
    if crl is None:
        raise CrlNotPublishedError
    return _answer(request, crl)


@router.get(
    ROOT_CRL_PATH,
    summary="The revoked intermediate certificates (DER, RFC 5280)",
    description="Signed whenever the root's key is at hand, and valid until it is needed next.",
    response_class=Response,
    responses={
        200: {"description": "The newest list", "content": _LIST},
        304: {"description": "The list that `If-None-Match` names is the newest"},
        **openapi.problems(ROOT_CRL_PATH, 404, 429, 500, 503),
    },
)
async def root_list(request: Request) -> Response:
    """Return the newest list of the root CA. Raises RootCrlNotPublishedError without one."""
    crls: Crls = request.app.state.crls
    crl = await crls.root.read()
    if crl is None:
        raise RootCrlNotPublishedError
    return _answer(request, crl)


class NewestCrl:
    """A reader of the newest list of one issuer. Owned by the event loop.

    Concurrent requests share one database query. A request uses only the result of a query that
    began after the request arrived: an earlier query may have returned a list that another process
    has replaced since.
    """

    def __init__(self, served: ServedCrls, issuer: str, threads: Executor) -> None:
        self._served = served
        self._issuer = issuer
        self._threads = threads
        self._turn = asyncio.Lock()  # held during a query; guards the fields below
        self._begun = 0  # the number of the newest query
        self._finished = 0  # the number of the newest query that has a result
        self._found: ServedCrl | None = None

    async def read(self) -> ServedCrl | None:
        """Return the newest list, or None if none is stored.

        While the database is away, return the list that this process read last. Raises
        DatabaseUnavailableError if it has read none, and PoolFullError.
        """
        # Read before the lock: a query with a higher number began after this request arrived.
        begun_before = self._begun
        async with self._turn:
            if self._finished > begun_before:
                return self._found
            self._begun = look = self._begun + 1  # before the query, not after it
            try:
                self._found = await run_with_timeout(
                    self._threads, partial(self._served.newest, self._issuer), _SECONDS
                )
            except DatabaseUnavailableError:
                self._found = self._served.last_known(self._issuer)
                if self._found is None:
                    raise
            self._finished = look
            return self._found


class Crls:
    """The readers of both issuers' lists, kept in the application's state."""

    def __init__(self, served: ServedCrls, threads: Executor) -> None:
        self.intermediate = NewestCrl(served, INTERMEDIATE, threads)
        self.root = NewestCrl(served, ROOT, threads)


def _answer(request: Request, crl: ServedCrl) -> Response:
    # "no-cache" makes caches revalidate the list at each use, so that a revocation counts at once.
    headers = {"ETag": f'"{crl.number}"', "Cache-Control": "no-cache"}
    if conditional.is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # In pieces, so that a slow client keeps one piece in memory and not a copy of the whole list.
    return StreamingResponse(
        _pieces(crl.der),
        headers={**headers, "Content-Length": str(len(crl.der))},
        media_type=_MEDIA_TYPE,
    )


async def _pieces(der: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(der), _PIECE_BYTES):
        yield der[start : start + _PIECE_BYTES]
