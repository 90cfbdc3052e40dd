"""POST /api/v1/validate/nuc/batch: validate up to 1,000 camera tokens in one transaction.

`web.pipeline` calls the endpoint. A malformed element gets an error in its place and does not reach
the validator, so it spoils no other element.
"""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.types import ASGIApp

from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.authority.validation.service import counts_as_fail
from birthmark_sma.errors import (
    BirthmarkError,
    DatabaseUnavailableError,
    RateLimitedError,
    TokenAlreadySubmittedError,
)
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.pool.pool import Reservation
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.batch_parsing import parse_batch, parse_elements
from birthmark_sma.web.api.models.validation import ValidateBatchRequest, ValidateBatchResponse
from birthmark_sma.web.api.validate import (
    BATCH_PATH,
    JsonAnswer,
    charge_refused_body,
    check_repeat,
    end_if_cancelled,
    phrase,
)
from birthmark_sma.web.middleware.admission import (
    announced_bytes,
    check_room,
    most_tokens,
    reserved_room,
)
from birthmark_sma.web.middleware.rate_limit import check_left, consume, consume_shared, show_quotas
from birthmark_sma.web.middleware.request_body import read_json
from birthmark_sma.web.problems import InvalidRequestError, RequestError
from birthmark_sma.web.server_state import ApiRequest

_BODY_BYTES = 1024 * 1024
_RESULTS_AT_ONCE = 100  # results that are formatted before other requests get their turn

router = APIRouter(tags=["validate"])


@router.post(
    BATCH_PATH,
    response_model=None,
    summary="Validate up to 1,000 camera tokens",
    description="Each element gets the result of a single validation, in the same order. An element"
    " that would be a 400 or a 422 gets `FAIL` with an `error`; one that would be a 409 gets an"
    " `error` without a verdict. No element affects another. All results of a request are recorded"
    " in one transaction.",
    responses={
        **openapi.success(ValidateBatchResponse, "The verdicts", mixed=examples.BATCH),
        **openapi.problems(BATCH_PATH, 408, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateBatchRequest)},
)
async def validate_batch(request: ApiRequest) -> ASGIApp:
    """Return one result per element, in their order.

    Raises DatabaseUnavailableError or RateLimitedError for the whole batch.
    """
    context, authority = request.context, request.server.authority
    caller, limits = context.known_caller, authority.rate_limits
    # The setting is meant for single tokens. A batch has at least 1 MiB.
    most = max(authority.settings.max_body_bytes, _BODY_BYTES)
    # What can only be refused is neither read nor parsed.
    check_left(context, limits, Kind.VALIDATE, caller)
    await check_room(authority.validator, caller, most_tokens(announced_bytes(context.headers)))
    try:
        body = await read_json(context.headers, request.receive, most)
    except RequestError:
        consume(context, limits, Kind.VALIDATE, caller)
        await charge_refused_body(request)
        raise
    # Before the body is parsed, so that no parsed batch is refused.
    with reserved_room(authority.validator, caller, most_tokens(len(body))) as room:
        if context.trace is not None:
            context.trace.parsing()
        try:
            tokens = await parse_batch(body)
        except InvalidRequestError:
            consume(context, limits, Kind.VALIDATE, caller)
            raise
        # Malformed elements cost as much as others.
        consume(context, limits, Kind.VALIDATE, caller, len(tokens))
        elements = [element async for element in parse_elements(tokens)]
        judged = await _judge(request, elements, room)
    try:
        results = await _phrase_all(request, elements, judged)
    except DatabaseUnavailableError:
        # The caller gets none of the verdicts. `leave` records them as lost, so that a retry gets
        # them (ADR 0009).
        if context.awaited_answer is not None:
            context.awaited_answer.leave()
        raise
    return JsonAnswer(to_json({"results": results}))


async def _judge(
    request: ApiRequest, elements: Sequence[CameraToken | str], room: Reservation
) -> Sequence[Validation | BirthmarkError]:
    """Submit the well-formed tokens to the validator and return an answer for each.

    With a shared rate limit store, a unit for each element is taken from the store first. Raises
    RateLimitedError if the caller has gathered too many FAILs.
    """
    context, authority = request.context, request.server.authority
    caller, limits, settings = context.known_caller, authority.rate_limits, authority.settings
    shared, cost = limits.shared, len(elements)
    if shared:
        if context.trace is not None:
            context.trace.parsed()
        await consume_shared(context, limits, Kind.VALIDATE, caller, cost)
    if context.trace is not None:
        context.trace.offered()
    judged: Sequence[Validation | BirthmarkError] = ()
    try:
        end_if_cancelled()
        positions, camera_tokens = _tokens_of(elements)
        if camera_tokens:
            future = authority.validator.submit_together(
                camera_tokens, caller, context, room, positions
            )
            request.server.deadlines.add(future, settings.answer_timeout)
            judged = await future
    finally:
        if shared:
            failed = sum(
                isinstance(each, Validation) and counts_as_fail(each, settings.replay)
                for each in judged
            )
            limits.release(Kind.VALIDATE, caller, cost, failed)
    # A limit of FAILs refuses a request as a whole, so the first answer speaks for all.
    if judged and isinstance(judged[0], RateLimitedError):
        show_quotas(context, limits, Kind.VALIDATE, caller)
        raise judged[0]
    context.reasons = [each.reason for each in judged if isinstance(each, Validation)]
    return judged


def _tokens_of(elements: Sequence[CameraToken | str]) -> tuple[list[int], list[CameraToken]]:
    """Return the well-formed tokens and their positions in the batch."""
    positions, tokens = [], []
    for position, each in enumerate(elements):
        if isinstance(each, CameraToken):
            positions.append(position)
            tokens.append(each)
    return positions, tokens


async def _phrase_all(
    request: ApiRequest,
    elements: Sequence[CameraToken | str],
    judged: Sequence[Validation | BirthmarkError],
) -> list[dict[str, str | None]]:
    answers = iter(judged)
    results = []
    for place, each in enumerate(elements):
        if place % _RESULTS_AT_ONCE == _RESULTS_AT_ONCE - 1:
            await asyncio.sleep(0)  # lets other requests run
        results.append(_refused(each) if isinstance(each, str) else _phrase(request, next(answers)))
    return results


def _phrase(request: ApiRequest, validation: Validation | BirthmarkError) -> dict[str, str | None]:
    if isinstance(validation, BirthmarkError):
        raise validation
    try:
        check_repeat(validation, request.server.authority.settings.replay)
    except TokenAlreadySubmittedError as refusal:
        return {"error": f"{refusal}."}
    error = validation.reason.told_to_caller
    return phrase(request, validation) if error is None else _refused(error)


def _refused(error: str) -> dict[str, str | None]:
    return {"validation_result": Verdict.FAIL.value, "error": error}
