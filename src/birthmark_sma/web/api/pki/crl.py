"""GET /pki/intermediate.crl and /pki/root.crl: serve the stored revocation lists (RFC 5280).

`authority.ca.crl_publication` signs and stores the lists; this module never does. Every process
serves the newest stored list.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from birthmark_sma.authority.authority import CRL_PATH, ROOT_CRL_PATH
from birthmark_sma.authority.ca.crl_store import ServedCrl
from birthmark_sma.errors import CrlNotPublishedError, RootCrlNotPublishedError
from birthmark_sma.web.api import openapi
from birthmark_sma.web.server_state import ApiRequest

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
    summary="Download the revocation list of device certificates (DER)",
    description="A new list is published within seconds of each revocation, and every 6 hours. Ask"
    " again with `If-None-Match`: the status 304 means that the list is still the newest.",
    response_class=Response,
    responses={
        200: {"description": "The newest list", "content": _LIST},
        304: {"description": "The list that `If-None-Match` names is the newest"},
        **openapi.problems(CRL_PATH, 429, 500, 503),
    },
)
async def intermediate_list(request: ApiRequest) -> Response:
    """Return the newest list of the intermediate CA.

    Before the first list is published, the request waits for about 10 seconds. Then it raises
    CrlNotPublishedError.
    """
    newest = request.server.intermediate_crl
    crl = await newest.read()
    tries = int(_FIRST_SECONDS / _FIRST_LOOK_SECONDS)
    while crl is None and tries:
        tries -= 1
        await asyncio.sleep(_FIRST_LOOK_SECONDS)
        crl = await newest.read()
    if crl is None:
        raise CrlNotPublishedError
    return _answer(request, crl)


@router.get(
    ROOT_CRL_PATH,
    summary="Download the revocation list of intermediates (DER)",
    description="It is signed whenever the root's key is present, and is valid until the next"
    " planned use of the key.",
    response_class=Response,
    responses={
        200: {"description": "The newest list", "content": _LIST},
        304: {"description": "The list that `If-None-Match` names is the newest"},
        **openapi.problems(ROOT_CRL_PATH, 404, 429, 500, 503),
    },
)
async def root_list(request: ApiRequest) -> Response:
    """Return the newest list of the root CA. Raises RootCrlNotPublishedError without one."""
    crl = await request.server.root_crl.read()
    if crl is None:
        raise RootCrlNotPublishedError
    return _answer(request, crl)


def is_known(request: Request, etag: str) -> bool:
    """Return True if If-None-Match names `etag`, so that a 304 is enough.

    Tags are compared weakly, and `*` matches any (RFC 9110, section 13.1.2).
    """
    known = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    return etag in tags or tags == ["*"]


def _answer(request: ApiRequest, crl: ServedCrl) -> Response:
    # "no-cache" makes caches revalidate the list at each use, so that a revocation counts at once.
    headers = {"ETag": f'"{crl.number}"', "Cache-Control": "no-cache"}
    if is_known(request, headers["ETag"]):
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
