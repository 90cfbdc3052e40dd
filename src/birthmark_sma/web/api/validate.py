"""POST /api/v1/validate/nuc: validate one camera token.

`web.pipeline` calls the endpoint once the caller is authenticated and its rate limit allows the
token. `validate_batch` and `validate_published` use `judge` and the other functions, too.

In this order: check that the pool has room, read the body, parse it, ask the shared store of rate
limits if there is one, submit the token to the validator, check for a replay, format. A verdict is
returned only after its audit row is durable.
"""

import asyncio
from collections.abc import Callable, Sequence

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.authority.validation.service import counts_as_fail, is_withheld
from birthmark_sma.config import Disclosure, ReplayPolicy
from birthmark_sma.errors import (
    DatabaseFault,
    DatabaseUnavailableError,
    RateLimitedError,
    TokenAlreadySubmittedError,
)
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.models.validation import ValidateNucRequest, ValidateNucResponse, verdict
from birthmark_sma.web.middleware.admission import check_room
from birthmark_sma.web.middleware.rate_limit import consume_shared, show_quotas
from birthmark_sma.web.middleware.request_body import parse, read_json
from birthmark_sma.web.problems import ALREADY_SUBMITTED, RequestError, UnknownAddressError
from birthmark_sma.web.routes import VALIDATE, VALIDATE_BATCH
from birthmark_sma.web.server_state import ApiRequest

PATH = VALIDATE.path
BATCH_PATH = VALIDATE_BATCH.path

router = APIRouter(tags=["validate"])


@router.post(
    PATH,
    response_model=None,
    summary="Validate a camera token",
    description="PASS means: the token opens, its NUC hash belongs to a registered and active"
    " device, and the table is one of that device's. FAIL gives no reason. Every attempt is in the"
    " audit trail before its response is sent. Another caller may validate the same token at any"
    " time; the same caller may do so unless this authority refuses repeats (409).",
    responses={
        **openapi.success(ValidateNucResponse, "A verdict", PASS=examples.PASS, FAIL=examples.FAIL),
        **openapi.problems(PATH, 400, 408, 413, 415, 422, 429, 500, 503, ALREADY_SUBMITTED),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateNucRequest)},
)
async def validate_nuc(request: ApiRequest) -> ASGIApp:
    """Return the verdict of a camera token.

    Raises UnknownAddressError for an unknown table or key index.
    """
    validation = await judge(request, _parse_token)
    if validation.reason.told_to_caller is not None:
        raise UnknownAddressError(validation.reason)
    return JsonAnswer(to_json(phrase(request, validation)))


async def judge(
    request: ApiRequest,
    parse_tokens: Callable[[bytes], Sequence[CameraToken]],
    derivation: Derivation = NORMATIVE,
) -> Validation:
    """Judge the camera token in the body of a request, once its audit row is durable.

    `parse_tokens` returns the token first, then the same token under other tables: only published
    cameras name more than one. Raises RateLimitedError, PoolFullError, and as `check_repeat`.
    Raises DatabaseUnavailableError after the setting `answer_timeout` (seconds).
    """
    context, authority = request.context, request.server.authority
    # Before the body is read: in a flood, most requests are refused here.
    if not authority.validator.pool.has_room(context.known_caller.partition, 1):
        await check_room(authority.validator, context.known_caller)
    try:
        body = await read_json(context.headers, request.receive, authority.settings.max_body_bytes)
    except RequestError:
        await charge_refused_body(request)
        raise
    if context.trace is not None:
        context.trace.parsing()
    camera_tokens = parse_tokens(body)
    try:
        if authority.rate_limits.shared:
            validation = await _judge_shared(request, camera_tokens, derivation)
        else:
            validation = await _submit(request, camera_tokens, derivation)
    except RateLimitedError:
        # The limit of FAILs was reached meanwhile, so the header fields are set again.
        show_quotas(context, authority.rate_limits, Kind.VALIDATE, context.known_caller)
        raise
    context.reasons = (validation.reason,)
    check_repeat(validation, authority.settings.replay)
    return validation


async def _judge_shared(
    request: ApiRequest, camera_tokens: Sequence[CameraToken], derivation: Derivation
) -> Validation:
    """Judge a token after the shared store of rate limits has allowed it."""
    context, authority = request.context, request.server.authority
    caller, limits = context.known_caller, authority.rate_limits
    if context.trace is not None:
        context.trace.parsed()
    await consume_shared(context, limits, Kind.VALIDATE, caller)
    failed = 0
    try:
        end_if_cancelled()
        validation = await _submit(request, camera_tokens, derivation)
        failed = counts_as_fail(validation, authority.settings.replay)
    finally:
        # Gives back the reservation that `consume_shared` made, less the token if it failed.
        limits.release(Kind.VALIDATE, caller, 1, failed)
    return validation


def _submit(
    request: ApiRequest, camera_tokens: Sequence[CameraToken], derivation: Derivation
) -> "asyncio.Future[Validation]":
    context, server = request.context, request.server
    if context.trace is not None:
        context.trace.offered()
    camera_token, *alternatives = camera_tokens
    future = server.authority.validator.submit_async(
        camera_token, context.known_caller, context, derivation, alternatives
    )
    server.deadlines.add(future, server.authority.settings.answer_timeout)
    return future


def _parse_token(body: bytes) -> Sequence[CameraToken]:
    return (parse(body, ValidateNucRequest).camera_token(),)


async def charge_refused_body(request: ApiRequest) -> None:
    """Take the unit of a refused body from the shared store, as for a camera token.

    `web.pipeline` has taken it from the memory of this process. Raises RateLimitedError.
    """
    limits, caller = request.server.authority.rate_limits, request.context.known_caller
    if limits.shared:
        await consume_shared(request.context, limits, Kind.VALIDATE, caller)
        limits.release(Kind.VALIDATE, caller, 1)


def check_repeat(validation: Validation, policy: ReplayPolicy) -> None:
    """Raise TokenAlreadySubmittedError if the caller must not get a second verdict.

    This depends on SMA_REPLAY. A caller whose first response was lost gets the verdict. While it is
    not known yet whether the response was lost, DatabaseUnavailableError is raised, so that the
    caller retries (ADR 0009).
    """
    if not is_withheld(validation, policy):
        return
    if validation.in_doubt:
        raise DatabaseUnavailableError(
            "The database was slow, and it is not certain yet whether you got the verdict of"
            " this camera token before; try again",
            fault=DatabaseFault.BUSY,
        )
    raise TokenAlreadySubmittedError


def phrase(request: ApiRequest, validation: Validation) -> dict[str, str | None]:
    """Return a verdict as JSON, with as much of the device as the caller may know."""
    settings, key = request.server.authority.settings, request.context.known_caller.key
    disclosure = settings.disclosure
    # The disclosure of the access key takes precedence over that of the settings.
    if key is not None and key.disclosure is not None:
        disclosure = Disclosure(key.disclosure)
    return verdict(validation, settings.manufacturer_id, disclosure)


class JsonAnswer:
    """A JSON response of status 200. It is cheaper than Starlette's JSONResponse."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the response."""
        length = str(len(self._body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def end_if_cancelled() -> None:
    """Raise CancelledError if this task was cancelled without a CancelledError.

    In Python 3.11, `asyncio.wait_for` loses a cancellation that comes together with its result. The
    calls to Redis use it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
