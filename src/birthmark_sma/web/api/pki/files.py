"""GET /pki/*: the certificates, chains and revocation lists of all CAs, and the trusted roots.

Verifiers call these endpoints. `authority.ca.crl_publication` signs and stores the lists, and
`authority.ca.succession` the certificates; this module never signs. Every process serves the newest
stored list.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from birthmark_sma.authority.ca.crl_store import ServedCrl
from birthmark_sma.authority.ca.issuers import (
    CRL_PATH,
    INTERMEDIATE_PATH,
    ROOT_CRL_PATH,
    ROOT_PATH,
    ROOTS_PATH,
    ROOTS_SIGNATURE_PATH,
    OpenCa,
    OpenIssuers,
    trusted_roots,
)
from birthmark_sma.authority.ca.store import FIRST_INTERMEDIATE, FIRST_ROOT, CaRole
from birthmark_sma.errors import CrlNotPublishedError, RootCrlNotPublishedError
from birthmark_sma.web.api import openapi
from birthmark_sma.web.routes import CA_FILE
from birthmark_sma.web.server_state import ApiRequest

# A request just after a server's first start waits about this long for the first list to be
# published, and looks for it at this interval.
_FIRST_SECONDS = 10.0
_FIRST_LOOK_SECONDS = 0.2
_PIECE_BYTES = 65_536
_CRL = "application/pkix-crl"
_CERTIFICATE = "application/pkix-cert"
_PEM = "application/x-pem-file"
_SIGNATURE = "application/pkcs7-signature"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UNCHANGED: dict[int | str, dict[str, object]] = {
    304: {"description": "What `If-None-Match` names is the newest"}
}

router = APIRouter(tags=["operate"])


def _download(media_type: str, what: str) -> dict[int | str, dict[str, object]]:
    return {200: {"description": what, "content": {media_type: _BINARY}}}


@router.get(
    ROOT_PATH,
    summary="Download the first root certificate (DER)",
    response_class=Response,
    responses={
        **_download(_CERTIFICATE, "The root that verifiers pin"),
        **openapi.problems(ROOT_PATH, 429),
    },
)
async def root_certificate(request: ApiRequest) -> Response:
    """Return the first root certificate. Later ones are in `/pki/ca/`."""
    return _certificate(_find(request, FIRST_ROOT))


@router.get(
    INTERMEDIATE_PATH,
    summary="Download the first intermediate certificate (DER)",
    response_class=Response,
    responses={
        **_download(_CERTIFICATE, "The issuer of device certificates"),
        **openapi.problems(INTERMEDIATE_PATH, 429),
    },
)
async def intermediate_certificate(request: ApiRequest) -> Response:
    """Return the first intermediate: where the AIA of its device certificates points."""
    return _certificate(_find(request, FIRST_INTERMEDIATE))


@router.get(
    CRL_PATH,
    summary="Download the revocation list of device certificates (DER)",
    description="The list of the first intermediate. A new list is published within seconds of each"
    " revocation, and every 6 hours. Ask again with `If-None-Match`: the status 304 means that the"
    " list is still the newest.",
    response_class=Response,
    responses={
        **_download(_CRL, "The newest list"),
        **_UNCHANGED,
        **openapi.problems(CRL_PATH, 429, 500, 503),
    },
)
async def intermediate_list(request: ApiRequest) -> Response:
    """Return the newest list of the first intermediate.

    Before the first list is published, the request waits for about 10 seconds. Then it raises
    CrlNotPublishedError.
    """
    return await _newest_list(request, FIRST_INTERMEDIATE)


@router.get(
    ROOT_CRL_PATH,
    summary="Download the revocation list of intermediates (DER)",
    description="The list of the first root. It is signed whenever the root's key is present, and"
    " is valid until the next planned use of the key.",
    response_class=Response,
    responses={
        **_download(_CRL, "The newest list"),
        **_UNCHANGED,
        **openapi.problems(ROOT_CRL_PATH, 404, 429, 500, 503),
    },
)
async def root_list(request: ApiRequest) -> Response:
    """Return the newest list of the first root. Raises RootCrlNotPublishedError without one."""
    return await _newest_list(request, FIRST_ROOT)


@router.get(
    CA_FILE.path,
    summary="Download the certificate, chain or revocation list of any CA",
    description="`NAME.crt` (DER) is the certificate, `NAME.crl` (DER) the revocation list, and"
    " `NAME.chain.pem` the certificates from the CA to its root, with the cross-certificates of the"
    " root. The names are `root`, `intermediate`, `intermediate-2` and so on. Certificates of"
    " devices have the address of their own issuer's files.",
    response_class=Response,
    openapi_extra={
        "parameters": [
            {
                "name": "file",
                "in": "path",
                "required": True,
                "description": "The name of a CA and the kind of the file",
                "schema": {"type": "string"},
                "example": "intermediate.chain.pem",
            }
        ]
    },
    responses={
        200: {
            "description": "The file",
            "content": {_CERTIFICATE: _BINARY, _CRL: _BINARY, _PEM: _BINARY},
        },
        **_UNCHANGED,
        **openapi.problems(CA_FILE.path, 404, 429, 500, 503),
    },
)
async def ca_file(request: ApiRequest) -> Response:
    """Return a file of a CA. Raises 404 for other names."""
    file: bytes = request.scope["raw_path"][len(CA_FILE.prefix) :]
    name, _, kind = file.decode("ascii").partition(".")
    issuers = _issuers(request)
    ca = issuers.find(name)
    if ca is not None and kind == "crt":
        return _certificate(ca)
    if ca is not None and kind == "chain.pem":
        return _tagged(request, "".join(issuers.chain(name)).encode(), _PEM)
    if ca is not None and kind == "crl" and ca.stored.role is not CaRole.CROSS:
        return await _newest_list(request, name)
    raise HTTPException(404)


@router.get(
    ROOTS_PATH,
    summary="Download the roots that verifiers should trust (PEM)",
    description="One root, or several around the change to a new root. Do not trust them because"
    " of this download alone: check the signature in `/pki/roots.pem.p7s` with the root that you"
    " have.",
    response_class=Response,
    responses={
        **_download(_PEM, "The roots, the oldest first"),
        **_UNCHANGED,
        **openapi.problems(ROOTS_PATH, 429),
    },
)
async def roots(request: ApiRequest) -> Response:
    """Return the trusted roots."""
    return _tagged(request, trusted_roots(each.stored for each in _issuers(request).cas), _PEM)


@router.get(
    ROOTS_SIGNATURE_PATH,
    summary="Download the signature over the trusted roots (CMS, DER)",
    description="The previous root signed `/pki/roots.pem` when the newest root was made; before"
    " that, the only root signed it.",
    response_class=Response,
    responses={
        **_download(_SIGNATURE, "The detached signature"),
        **_UNCHANGED,
        **openapi.problems(ROOTS_SIGNATURE_PATH, 404, 429),
    },
)
async def roots_signature(request: ApiRequest) -> Response:
    """Return the signature. Raises 404 if the list was never signed."""
    signature = _issuers(request).roots_signature
    if signature is None:
        raise HTTPException(404)
    return _tagged(request, signature, _SIGNATURE)


def is_known(request: Request, etag: str) -> bool:
    """Return True if If-None-Match names `etag`, so that a 304 is enough.

    Tags are compared weakly, and `*` matches any (RFC 9110, section 13.1.2).
    """
    known = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    return etag in tags or tags == ["*"]


def _issuers(request: ApiRequest) -> OpenIssuers:
    return request.server.authority.issuers


def _find(request: ApiRequest, name: str) -> OpenCa:
    ca = _issuers(request).find(name)
    if ca is None:
        raise HTTPException(404)
    return ca


def _certificate(ca: OpenCa) -> Response:
    return Response(ca.certificate.public_bytes(Encoding.DER), media_type=_CERTIFICATE)


def _tagged(request: ApiRequest, content: bytes, media_type: str) -> Response:
    """Return content that changes with the CAs: caches must ask for it at each use."""
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",
    }
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


async def _newest_list(request: ApiRequest, name: str) -> Response:
    newest = request.server.crls.of(name)
    crl = await newest.read()
    issuers = _issuers(request)
    if crl is None and _find(request, name).stored.role is CaRole.ROOT:
        raise RootCrlNotPublishedError
    if crl is None and not any(name == each.name for each in issuers.signing()):
        raise HTTPException(404)  # a prepared intermediate has revoked nothing yet
    tries = int(_FIRST_SECONDS / _FIRST_LOOK_SECONDS)
    while crl is None and tries:
        tries -= 1
        await asyncio.sleep(_FIRST_LOOK_SECONDS)
        crl = await newest.read()
    if crl is None:
        raise CrlNotPublishedError
    return _list(request, crl)


def _list(request: ApiRequest, crl: ServedCrl) -> Response:
    # "no-cache" makes caches revalidate the list at each use, so that a revocation counts at once.
    headers = {"ETag": f'"{crl.number}"', "Cache-Control": "no-cache"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # In pieces, so that a slow client keeps one piece in memory and not a copy of the whole list.
    return StreamingResponse(
        _pieces(crl.der),
        headers={**headers, "Content-Length": str(len(crl.der))},
        media_type=_CRL,
    )


async def _pieces(der: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(der), _PIECE_BYTES):
        yield der[start : start + _PIECE_BYTES]
