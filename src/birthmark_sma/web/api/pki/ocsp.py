"""GET and POST /pki/ocsp/: the status of certificates (OCSP over HTTP: RFC 6960, appendix A).

`authority.ocsp.responder` answers; this module only carries requests and responses. Every OCSP
response has the status 200, also an error of OCSP's own, which caches must not keep. Only limits of
HTTP give problem documents.
"""

from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache

from fastapi import APIRouter
from starlette.responses import Response

from birthmark_sma.authority.ocsp.responder import MAX_AGE, OcspAnswer, SignedAnswer
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.errors import OcspRequestRefusedError
from birthmark_sma.pki.ocsp.requests import MOST_BYTES, decode_get
from birthmark_sma.web.api import openapi
from birthmark_sma.web.api.pki.files import is_known
from birthmark_sma.web.middleware.rate_limit import consume, consume_shared
from birthmark_sma.web.middleware.request_body import read_bytes
from birthmark_sma.web.problems import RequestError
from birthmark_sma.web.routes import OCSP, OCSP_GET
from birthmark_sma.web.server_state import ApiRequest

_REQUEST_TYPE = b"application/ocsp-request"
_RESPONSE_TYPE = "application/ocsp-response"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESPONSE = {
    "description": "An OCSPResponse (DER). Its own status says whether it is an error.",
    "content": {_RESPONSE_TYPE: _BINARY},
}
_EXPLAINED = (
    "The responder knows all certificates of the issuer, including expired ones. A revocation shows"
    " within 2 seconds. CertIDs may use SHA-1 or SHA-256. Requests with a nonce, for several"
    " certificates (up to 10) or for unknown ones are limited for each caller."
)

router = APIRouter(tags=["operate"])


@router.post(
    OCSP.path,
    summary="The status of certificates (OCSP by POST)",
    description=_EXPLAINED,
    response_class=Response,
    openapi_extra={"requestBody": {"required": True, "content": {_REQUEST_TYPE.decode(): _BINARY}}},
    responses={200: _RESPONSE, **openapi.problems(OCSP.path, 413, 415, 429, 500)},
)
async def answer_post(request: ApiRequest) -> Response:
    """Return the response to the request in the body."""
    media_types = request.context.header_values(b"content-type")
    if [each.partition(b";")[0].strip().lower() for each in media_types] != [_REQUEST_TYPE]:
        raise RequestError(
            "unsupported-media-type",
            "Send an OCSPRequest in DER, with one Content-Type: application/ocsp-request.",
        )
    return _send(request, await _answer(request, await read_bytes(request.receive, MOST_BYTES)))


@router.get(
    OCSP_GET.path,
    summary="The status of a certificate (OCSP by GET)",
    description=_EXPLAINED,
    response_class=Response,
    openapi_extra={
        "parameters": [
            {
                "name": "request",
                "in": "path",
                "required": True,
                "description": "The base64 of an OCSPRequest (DER), percent-encoded",
                "schema": {"type": "string", "contentEncoding": "base64"},
            }
        ]
    },
    responses={
        200: _RESPONSE,
        304: {"description": "The response that `If-None-Match` names is still sent"},
        **openapi.problems(OCSP_GET.path, 429, 500),
    },
)
async def answer_get(request: ApiRequest) -> Response:
    """Return the response to the request in the path."""
    tail: bytes = request.scope["raw_path"][len(OCSP_GET.prefix) :]
    try:
        der = decode_get(tail)
    except OcspRequestRefusedError:
        der = b""  # an empty request is malformed, too
    answer = await _answer(request, der)
    if isinstance(answer, SignedAnswer) and is_known(request, answer.etag):
        return Response(status_code=304, headers=_cache_headers(request, answer))
    return _send(request, answer)


@router.get(OCSP.path, include_in_schema=False)
async def answer_nothing(request: ApiRequest) -> Response:
    """Return malformedRequest, as there is no request in the path."""
    return _send(request, await _answer(request, b""))


async def _answer(request: ApiRequest, der: bytes) -> OcspAnswer:
    async def admit() -> None:
        context, limits = request.context, request.server.authority.rate_limits
        consume(context, limits, Kind.OCSP, context.known_caller)
        if limits.shared:
            await consume_shared(context, limits, Kind.OCSP, context.known_caller)

    return await request.server.ocsp.answer(der, admit)


def _send(request: ApiRequest, answer: OcspAnswer) -> Response:
    headers = (
        _cache_headers(request, answer)
        if isinstance(answer, SignedAnswer)
        else {"Cache-Control": "no-store"}
    )
    return Response(answer.der, headers=headers, media_type=_RESPONSE_TYPE)


def _cache_headers(request: ApiRequest, answer: SignedAnswer) -> dict[str, str]:
    """Return the header fields of RFC 9919, sections 5 and 6.2."""
    now = request.server.authority.ocsp_delegation.now()
    seconds = max(0, int(min(MAX_AGE, answer.next_update - now).total_seconds()))
    return {
        "Cache-Control": f"max-age={seconds}, public, no-transform, must-revalidate",
        "ETag": answer.etag,
        "Expires": _http_date(answer.next_update),
        "Last-Modified": _http_date(answer.this_update),
    }


@lru_cache(maxsize=1_024)
def _http_date(time: datetime) -> str:
    return format_datetime(time, usegmt=True)
