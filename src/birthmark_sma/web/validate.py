"""POST /api/v1/validate/nuc and /batch: camera tokens in, verdicts out."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.validation import Validation
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.web import examples, openapi
from birthmark_sma.web.deadlines import Deadlines
from birthmark_sma.web.intake import caller_of, parse, read_json
from birthmark_sma.web.problems import InvalidRequestError, respond, unknown_address
from birthmark_sma.web.wire import (
    ValidateBatchRequest,
    ValidateBatchResponse,
    ValidateNucRequest,
    ValidateNucResponse,
    verdict,
)

PATH = "/api/v1/validate/nuc"
BATCH_PATH = "/api/v1/validate/nuc/batch"
_BATCH_BODY_BYTES = 1024 * 1024

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

router = APIRouter(tags=["validate"])


@router.post(
    PATH,
    response_model=None,
    summary="Validate a camera token",
    description="PASS means: the token opens, its NUC hash belongs to a registered and active"
    " device, and the table is one of that device's. FAIL never says why. The audit trail has the"
    " attempt before the answer leaves; the same token may be validated again.",
    responses={
        **openapi.success(ValidateNucResponse, "A verdict", PASS=examples.PASS, FAIL=examples.FAIL),
        **openapi.problems(PATH, 400, 408, 413, 415, 422, 500, 503),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateNucRequest)},
)
async def validate_nuc(request: Request) -> ASGIApp:
    """Stand in the documentation: `ShortWay` answers before a request gets here."""
    return await _validate(request.app, request.scope, request.receive)


@router.post(
    BATCH_PATH,
    response_model=None,
    summary="Validate up to 1,000 camera tokens",
    description="Each element gets the answer that it would have got alone, in the same order; one"
    " that would have been a 400 or 422 gets `FAIL` with an `error`, and spoils no other. The"
    " results of one request are recorded in one step.",
    responses={
        **openapi.success(ValidateBatchResponse, "The verdicts", mixed=examples.BATCH),
        **openapi.problems(BATCH_PATH, 408, 413, 415, 422, 500, 503),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateBatchRequest)},
)
async def validate_batch(request: Request) -> ASGIApp:
    """Stand in the documentation, as above."""
    return await _validate_batch(request.app, request.scope, request.receive)


class ShortWay:
    """The ASGI application: camera tokens are answered at once, all else goes FastAPI's way.

    FastAPI's layers cost several times what judging a token costs. Answers and problem documents
    are the same on both ways.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._ways: dict[str, Callable[[FastAPI, Scope, Receive], Awaitable[ASGIApp]]] = {
            PATH: _validate,
            BATCH_PATH: _validate_batch,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a POST with camera tokens, hand everything else on."""
        way = self._ways.get(scope["path"]) if scope["type"] == "http" else None
        if way is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            response = await way(self._app, scope, receive)
        except Exception as error:
            response = respond(Request(scope), error)
        await response(scope, receive, send)


class _Json:
    """A JSON answer of status 200, with nothing that every answer would pay for."""

    __slots__ = ("_body",)

    def __init__(self, value: object) -> None:
        self._body = _encode(value).encode()

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it."""
        length = str(len(self._body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


async def _validate(app: FastAPI, scope: Scope, receive: Receive) -> ASGIApp:
    """Parse, hand over to the validator, phrase its verdict."""
    authority: Authority = app.state.authority
    deadlines: Deadlines = app.state.deadlines
    settings = authority.settings
    body = await read_json(scope, receive, settings.max_body_bytes)
    camera_token = parse(body, ValidateNucRequest).camera_token()
    validation = await deadlines.wait(
        authority.validator.offer(camera_token, caller_of(scope)), settings.answer_timeout
    )
    if validation.reason.told_to_caller is not None:
        return unknown_address(Request(scope), validation.reason)
    return _Json(verdict(validation, settings.manufacturer_id, settings.disclosure))


async def _validate_batch(app: FastAPI, scope: Scope, receive: Receive) -> ASGIApp:
    """The same for many: what is malformed is answered here, the rest judged together."""
    authority: Authority = app.state.authority
    deadlines: Deadlines = app.state.deadlines
    settings = authority.settings
    limit = max(settings.max_body_bytes, _BATCH_BODY_BYTES)
    body = await read_json(scope, receive, limit)
    elements = [_element(each) for each in parse(body, ValidateBatchRequest).tokens]
    camera_tokens = [each for each in elements if isinstance(each, CameraToken)]
    judged: Sequence[Validation | BirthmarkError] = ()
    if camera_tokens:
        judged = await deadlines.wait(
            authority.validator.offer_together(camera_tokens, caller_of(scope)),
            settings.answer_timeout,
        )
    answers = iter(judged)
    results = [
        _refused(each) if isinstance(each, str) else _told(next(answers), authority)
        for each in elements
    ]
    return _Json({"results": results})


def _element(value: Any) -> CameraToken | str:
    """Return the camera token that an element is, or what is wrong with it."""
    try:
        return ValidateNucRequest.model_validate(value).camera_token()
    except ValidationError as error:
        return str(InvalidRequestError.of(error))


def _told(validation: Validation | BirthmarkError, authority: Authority) -> dict[str, str | None]:
    if isinstance(validation, BirthmarkError):
        raise validation
    error = validation.reason.told_to_caller
    if error is not None:
        return _refused(error)
    settings = authority.settings
    return verdict(validation, settings.manufacturer_id, settings.disclosure)


def _refused(error: str) -> dict[str, str | None]:
    return {"validation_result": Verdict.FAIL.value, "error": error}
