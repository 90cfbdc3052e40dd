"""POST /validate, /validate-legacy and /validate-cert: the API of the published clients (ADR 0001).

`web.pipeline` calls these endpoints. The Birthmark project's published clients have their own JSON
and key derivation. They take every status but 200 for a verdict and store it. So an object without
a well-formed token gets a 200 with `valid: false`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import PUBLISHED_CLIENTS
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.models.published import (
    LegacyValidateRequest,
    PublishedValidateRequest,
    PublishedValidateResponse,
)
from birthmark_sma.web.api.validate import JsonAnswer, judge
from birthmark_sma.web.middleware.request_body import checked, parse_json
from birthmark_sma.web.problems import ALREADY_SUBMITTED, InvalidRequestError, RequestError
from birthmark_sma.web.routes import VALIDATE_LEGACY, VALIDATE_PUBLISHED
from birthmark_sma.web.server_state import ApiRequest

PUBLISHED_PATH = VALIDATE_PUBLISHED.path
LEGACY_PATH = VALIDATE_LEGACY.path
"""The path for tokens in the packed form of the published Raspberry Pi clients."""
WITHDRAWN_PATHS = ("/validate-cert", "/validate-cert-legacy")
"""Paths to which published clients would send an image hash and a device's secret in the clear. The
clients replace `/validate` by `/validate-cert` in the URL that they are configured with."""

router = APIRouter(tags=["validate"])


def _published_responses(path: str) -> dict[int | str, dict[str, Any]]:
    return {
        **openapi.success(
            PublishedValidateResponse,
            "A verdict",
            valid=examples.PUBLISHED_VALID,
            invalid=examples.PUBLISHED_NOT_VALID,
        ),
        **openapi.problems(path, 408, 413, 415, 422, 429, 500, 503, ALREADY_SUBMITTED),
    }


@router.post(
    PUBLISHED_PATH,
    response_model=None,
    summary="Validate a camera token of a published client",
    description="For the Birthmark project's published clients. Only their key derivation is tried."
    " The token is judged and recorded like any other. An unknown `table_id`, and a member that is"
    " missing, too long or out of range, also get a 200, because these clients take every other"
    " status for a verdict of invalid and store it. Unknown members are ignored. New clients use"
    " `/api/v1/validate/nuc`.",
    responses=_published_responses(PUBLISHED_PATH),
    openapi_extra={"requestBody": openapi.request_body(PublishedValidateRequest)},
)
async def validate_published(request: ApiRequest) -> ASGIApp:
    """Return the verdict of a camera token, in the form of the published clients."""
    return await _validate(request, PublishedValidateRequest)


@router.post(
    LEGACY_PATH,
    response_model=None,
    summary="Validate a camera token that a published Raspberry Pi client packed",
    description="The token names three tables and a key index for each. Two of the indices are"
    " random. The token is valid if exactly one of the three keys opens it and all other rules hold"
    " for that table. It is judged and recorded once. Everything else is as for `/validate`.",
    responses=_published_responses(LEGACY_PATH),
    openapi_extra={"requestBody": openapi.request_body(LegacyValidateRequest)},
)
async def validate_legacy(request: ApiRequest) -> ASGIApp:
    """Return the verdict of a packed token, which names three tables."""
    return await _validate(request, LegacyValidateRequest)


async def validate_certificate(request: ApiRequest) -> Response:  # noqa: ARG001  every endpoint gets it
    """Refuse what would tell this authority an image hash and a device's secret. Reads no body."""
    raise RequestError(
        "withdrawn",
        "This authority does not validate certificate bundles: they would tell it the hash of the"
        f" image. Send the camera token to {PUBLISHED_PATH} or {LEGACY_PATH}.",
    )


for path in WITHDRAWN_PATHS:
    router.add_api_route(
        path,
        validate_certificate,
        methods=["POST"],
        status_code=410,
        response_class=Response,
        response_model=None,
        include_in_schema=path == WITHDRAWN_PATHS[0],
        summary="Not supported: it would tell the authority the hash of the image",
        responses=openapi.problems(path, 410, 429, 500, 503),
    )


class _NoCameraTokenError(Exception):
    """A published client's body is an object, but holds no camera token."""


_Model = type[PublishedValidateRequest] | type[LegacyValidateRequest]


async def _validate(request: ApiRequest, model: _Model) -> ASGIApp:
    try:
        validation = await judge(request, partial(_parse_tokens, model), PUBLISHED_CLIENTS)
    except _NoCameraTokenError as error:
        return JsonAnswer(to_json(PublishedValidateResponse.malformed(str(error))))
    return JsonAnswer(to_json(PublishedValidateResponse.of(validation.reason)))


def _parse_tokens(model: _Model, body: bytes) -> Sequence[CameraToken]:
    value = parse_json(body)
    try:
        return checked(value, model).tokens()
    except InvalidRequestError as error:
        if isinstance(value, dict):
            raise _NoCameraTokenError(str(error)) from None
        raise
