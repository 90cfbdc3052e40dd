"""POST /api/v1/validate/nuc and /batch, /validate and /validate-legacy: validate camera tokens.

The routes only document these paths. `ValidationMiddleware` answers the requests before FastAPI
gets them, and `web.transport.fast_path` answers single tokens without ASGI (ADR 0007). Both call
the same two methods, `begin` and `finish`, so their responses are the same.

In this order: authenticate, take from the rate limit, check the head, parse, submit to the
validator, check for a replay, format. A verdict is returned only after its audit row is durable.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.rate_limits.limiter import Kind, RateLimits
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.authority.validation.service import counts_as_fail, is_withheld
from birthmark_sma.config import Disclosure, ReplayPolicy
from birthmark_sma.errors import (
    BirthmarkError,
    CallerLeftError,
    DatabaseFault,
    DatabaseUnavailableError,
    InsufficientScopeError,
    RateLimitedError,
    TokenAlreadySubmittedError,
    UnauthenticatedError,
)
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, PUBLISHED_CLIENTS
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.runtime.log_context import UNANSWERED
from birthmark_sma.web.api import examples, health, openapi
from birthmark_sma.web.api.batch_parsing import parse_batch, parse_elements
from birthmark_sma.web.api.models import (
    LegacyValidateRequest,
    PublishedValidateRequest,
    PublishedValidateResponse,
    ValidateBatchRequest,
    ValidateBatchResponse,
    ValidateNucRequest,
    ValidateNucResponse,
    verdict,
)
from birthmark_sma.web.logs.request_ids import TRACE, bind_request
from birthmark_sma.web.middleware import rate_limit
from birthmark_sma.web.middleware.authentication import UNKNOWN, Authenticator, route_name
from birthmark_sma.web.middleware.request_body import (
    check_head,
    checked,
    get_caller,
    parse,
    parse_json,
    read_json,
)
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.response_deadline import Deadlines
from birthmark_sma.web.problems import (
    MISDIRECTED,
    InvalidRequestError,
    RequestError,
    UnknownAddressError,
    error_response,
)
from birthmark_sma.web.transport.fast_path import DirectEndpoint

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import RequestTrace, Tracing

PATH = "/api/v1/validate/nuc"
BATCH_PATH = "/api/v1/validate/nuc/batch"
PUBLISHED_PATH = "/validate"
"""The path of the Birthmark project's published clients. Their JSON and their key derivation differ
from those of the contract (ADR 0001)."""
LEGACY_PATH = "/validate-legacy"
"""The path for tokens in the packed form of the published Raspberry Pi clients."""
WITHDRAWN_PATHS = ("/validate-cert", "/validate-cert-legacy")
"""Paths to which published clients would send an image hash and a device's secret in the clear. The
clients replace `/validate` by `/validate-cert` in the URL that they are configured with."""
_BATCH_BODY_BYTES = 1024 * 1024
_RESULTS_AT_ONCE = 100  # results of a batch that are formatted before other requests get their turn

router = APIRouter(tags=["validate"])


@router.post(
    PATH,
    response_model=None,
    summary="Validate a camera token",
    description="PASS means: the token opens, its NUC hash belongs to a registered and active"
    " device, and the table is one of that device's. FAIL never says why. The audit trail has the"
    " attempt before the answer leaves; the same token may be validated again, by another"
    " caller at any time, by the same one unless this authority refuses that (409).",
    responses={
        **openapi.success(ValidateNucResponse, "A verdict", PASS=examples.PASS, FAIL=examples.FAIL),
        **openapi.problems(PATH, 400, 408, 413, 415, 422, 429, 500, 503),
        **openapi.replayed(PATH),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateNucRequest)},
)
async def validate_nuc(request: Request) -> ASGIApp:
    """Document the path. `ValidationMiddleware` answers its requests before they get here."""
    return await _SingleValidation(request.app).answer(request.scope, request.receive)


@router.post(
    BATCH_PATH,
    response_model=None,
    summary="Validate up to 1,000 camera tokens",
    description="Each element gets the answer that it would have got alone, in the same order; one"
    " that would have been a 400 or 422 gets `FAIL` with an `error`, one that would have been a"
    " 409 an `error` without a verdict, and neither spoils another. The results of one request are"
    " recorded in one step.",
    responses={
        **openapi.success(ValidateBatchResponse, "The verdicts", mixed=examples.BATCH),
        **openapi.problems(BATCH_PATH, 408, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateBatchRequest)},
)
async def validate_batch(request: Request) -> ASGIApp:
    """Document the path, as `validate_nuc` does."""
    return await _BatchValidation(request.app).answer(request.scope, request.receive)


def _published_responses(path: str) -> dict[int | str, dict[str, Any]]:
    return {
        **openapi.success(
            PublishedValidateResponse,
            "A verdict",
            valid=examples.PUBLISHED_VALID,
            invalid=examples.PUBLISHED_NOT_VALID,
        ),
        **openapi.problems(path, 408, 413, 415, 422, 429, 500, 503),
        **openapi.replayed(path),
    }


@router.post(
    PUBLISHED_PATH,
    response_model=None,
    summary="Validate a camera token of a published client",
    description="For the Birthmark project's published clients: the token was sealed under a key"
    " of their derivation, and no other is tried. It is judged and recorded as any other. An"
    " unknown `table_id`, and a member that is missing, too long or out of range, are an answer 200"
    " here too, and unknown members are ignored. Those clients take every other status for a"
    " verdict of invalid and store it: new ones use the other addresses.",
    responses=_published_responses(PUBLISHED_PATH),
    openapi_extra={"requestBody": openapi.request_body(PublishedValidateRequest)},
)
async def validate_published(request: Request) -> ASGIApp:
    """Document the path, as `validate_nuc` does."""
    return await _Published(request.app).answer(request.scope, request.receive)


@router.post(
    LEGACY_PATH,
    response_model=None,
    summary="Validate a camera token that a published Raspberry Pi client packed",
    description="The token names three tables and a key index for each, two of which are random:"
    " it is valid if exactly one of the three keys opens it and all other rules hold for that"
    " table. It is judged and recorded once. All else is as at `/validate`.",
    responses=_published_responses(LEGACY_PATH),
    openapi_extra={"requestBody": openapi.request_body(LegacyValidateRequest)},
)
async def validate_legacy(request: Request) -> ASGIApp:
    """Document the path, as `validate_nuc` does."""
    return await _Legacy(request.app).answer(request.scope, request.receive)


async def validate_certificate() -> None:
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


class ValidationMiddleware:
    """Middleware that authenticates callers and validates camera tokens; the rest is FastAPI's.

    It authenticates every caller and applies the rate limits. Then it answers camera tokens and
    probes itself, and passes all other requests to FastAPI. FastAPI's layers cost several times as
    much as judging a token. Responses and problem documents have the same form on both paths.
    """

    def __init__(
        self, app: FastAPI, traffic: RequestMetrics, tracing: "Tracing | None" = None
    ) -> None:
        self._app = app
        self._traffic = traffic
        self.routes: Sequence[BaseRoute] = app.routes
        """All routes, including those that this middleware answers itself."""
        self._single: Mapping[str, _SingleValidation]
        # Without tracing other classes are used, so that no request pays for the question.
        if tracing is None:
            self._single = {
                PATH: _SingleValidation(app),
                PUBLISHED_PATH: _Published(app),
                LEGACY_PATH: _Legacy(app),
            }
        else:
            self._single = {
                PATH: _TracedOne(app, tracing),
                PUBLISHED_PATH: _TracedPublished(app, tracing),
                LEGACY_PATH: _TracedLegacy(app, tracing),
            }
        self._many = _BatchValidation(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the caller, then validate camera tokens or pass the request on.

        All errors become problem documents here, except those that FastAPI handles itself.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response: ASGIApp
        endpoint = self._endpoint(scope)
        try:
            # First of all, so that a caller without a key learns nothing of a path.
            caller = self._app.state.authenticator.authenticate(scope)
            if endpoint is not None:
                response = await endpoint.answer(scope, receive)
            else:
                await self._pass(scope, caller)
                response = await self._handler(scope)
        except CallerLeftError:
            return  # the connection is closed: there is no one to send a response to
        except UnauthenticatedError as error:
            self._traffic.turned_away("unauthenticated")
            response = error_response(Request(scope), self._guessed(scope) or error)
        except Exception as error:
            if isinstance(error, InsufficientScopeError):
                self._traffic.turned_away("insufficient_scope")
            elif isinstance(error, RequestError) and error.slug == MISDIRECTED:
                self._traffic.turned_away("misdirected")
            response = error_response(Request(scope), error)
        await response(scope, receive, send)

    def direct_endpoint(self, scope: Scope) -> DirectEndpoint | None:
        """Return the endpoint for a POST of a single camera token, else None.

        `web.transport.fast_path` calls its two halves, without an ASGI task.
        """
        return self._single.get(route_name(scope)) if scope["method"] == "POST" else None

    async def _handler(self, scope: Scope) -> ASGIApp:
        """Return the application that answers a request other than a validation.

        FastAPI gets a path only if `route_name` knows it, so the two cannot match a path
        differently. Probes are answered without FastAPI, which would parse their whole query: a
        probe shows no credential, so anyone can send one. Raises HTTPException 404.
        """
        route = route_name(scope)
        if route == UNKNOWN:
            raise HTTPException(404)
        probe = health.PROBE_ANSWERS.get(route) if scope["method"] in {"GET", "HEAD"} else None
        if probe is None:
            return self._app
        return await probe(Request({**scope, "app": self._app}))

    def _guessed(self, scope: Scope) -> RateLimitedError | None:
        """Count a wrong credential. Return the error if the address has sent too many."""
        limits: RateLimits = self._app.state.authority.rate_limits
        try:
            rate_limit.record_failed_auth(scope, limits)
        except RateLimitedError as error:
            return error
        return None

    async def _pass(self, scope: Scope, caller: Caller) -> None:
        """Take a request other than a validation from its rate limit. Raises RateLimitedError."""
        kind = rate_limit.rate_limit_kind(scope)
        if kind is not None:
            limits: RateLimits = self._app.state.authority.rate_limits
            rate_limit.consume(scope, limits, kind, caller)
            if limits.shared:
                await rate_limit.consume_shared(scope, limits, kind, caller)

    def _endpoint(self, scope: Scope) -> "_SingleValidation | _BatchValidation | None":
        if scope["method"] != "POST":
            return None
        route = route_name(scope)
        return self._many if route == BATCH_PATH else self._single.get(route)


class _Json:
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


def _end_if_cancelled() -> None:
    """Raise CancelledError if this task was cancelled without a CancelledError.

    In Python 3.11, `asyncio.wait_for` loses a cancellation that comes together with its result. The
    calls to Redis use it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _CameraTokens:
    """The base of the single and batch endpoints.

    The properties are cached and not set in `__init__`, because an endpoint is made before the
    application starts and opens the authority.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def _authority(self) -> Authority:
        authority: Authority = self._app.state.authority
        return authority

    @cached_property
    def _deadlines(self) -> Deadlines:
        deadlines: Deadlines = self._app.state.deadlines
        return deadlines

    @cached_property
    def _authenticator(self) -> Authenticator:
        authenticator: Authenticator = self._app.state.authenticator
        return authenticator

    @cached_property
    def _replay(self) -> ReplayPolicy:
        return self._authority.settings.replay

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """Return a JSON body of at most `limit` bytes. Raises as `read_json` does.

        A refused body costs the caller one unit of its rate limit, as a camera token does.
        """
        try:
            return await read_json(scope, receive, limit)
        except RequestError:
            limits, caller = self._authority.rate_limits, get_caller(scope)
            rate_limit.consume(scope, limits, Kind.VALIDATE, caller)
            if limits.shared:
                await rate_limit.consume_shared(scope, limits, Kind.VALIDATE, caller)
                limits.release(Kind.VALIDATE, caller, 1)
            raise

    def _check_repeat(self, validation: Validation) -> None:
        """Raise TokenAlreadySubmittedError if the caller must not get a second verdict.

        This depends on SMA_REPLAY. A caller whose first response was lost gets the verdict. While
        it is not known yet whether the response was lost, DatabaseUnavailableError is raised, so
        that the caller retries (ADR 0009).
        """
        if not is_withheld(validation, self._replay):
            return
        if validation.in_doubt:
            raise DatabaseUnavailableError(
                "The database was slow, and it is not certain yet whether you got the verdict of"
                " this camera token before; ask again",
                fault=DatabaseFault.BUSY,
            )
        raise TokenAlreadySubmittedError

    def _verdict(self, validation: Validation, caller: Caller) -> dict[str, str | None]:
        # The disclosure of the access key takes precedence over that of the settings.
        settings = self._authority.settings
        disclosure = settings.disclosure
        if caller.key is not None and caller.key.disclosure is not None:
            disclosure = Disclosure(caller.key.disclosure)
        return verdict(validation, settings.manufacturer_id, disclosure)


class _Confirming:
    """A placeholder in the scope during the query of the shared rate limit store.

    A `Submission` of the writer then replaces it. The HTTP protocol calls `leave` on either.
    """

    def __init__(self, task: "asyncio.Task[Validation]") -> None:
        self._task = task

    def leave(self) -> None:
        """Cancel the task, so that the token is not submitted. Its caller has left."""
        self._task.cancel()


class _SingleValidation(_CameraTokens):
    """The endpoint for one camera token, in two halves (see `web.transport.fast_path`)."""

    _derivation = NORMATIVE

    async def answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        """Read the body, run both halves, and return the response."""
        body = await self._read(scope, receive, self._authority.settings.max_body_bytes)
        future = self.begin(scope, body)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if not future.cancel():
                future.exception()  # otherwise asyncio logs that it was never retrieved
            raise
        return _Json(self.finish(scope, future))

    def begin(self, scope: Scope, body: bytes) -> "asyncio.Future[Validation]":
        """Authenticate, take from the rate limit, parse, and submit the token to the validator.

        With a shared rate limit store, the token is submitted only after the store allows it. The
        future raises DatabaseUnavailableError after the setting `answer_timeout` (seconds).
        """
        authority = self._authority
        caller = scope.get("caller") or self._authenticator.authenticate(scope)
        # Before the head and the body are checked: a malformed request costs as much as a token.
        rate_limit.consume(scope, authority.rate_limits, Kind.VALIDATE, caller)
        check_head(scope, authority.settings.max_body_bytes)
        camera_tokens = self._camera_tokens(body)
        if authority.rate_limits.shared:
            task = asyncio.ensure_future(self._confirmed(scope, camera_tokens, caller))
            scope[UNANSWERED] = _Confirming(task)
            return task
        return self._offer(scope, camera_tokens, caller)

    def _camera_tokens(self, body: bytes) -> Sequence[CameraToken]:
        """Return the token first, then the same token under other tables.

        Only published cameras name more than one table. Raises InvalidRequestError.
        """
        return [parse(body, ValidateNucRequest).camera_token()]

    async def _confirmed(
        self, scope: Scope, camera_tokens: Sequence[CameraToken], caller: Caller
    ) -> Validation:
        bind_request(scope)  # this task has a context of its own
        limits = self._authority.rate_limits
        await rate_limit.consume_shared(scope, limits, Kind.VALIDATE, caller)
        failed = 0
        try:
            _end_if_cancelled()
            validation = await self._offer(scope, camera_tokens, caller)
            failed = counts_as_fail(validation, self._replay)
        finally:
            # Gives back the reservation that `consume_shared` made, less the token if it failed.
            limits.release(Kind.VALIDATE, caller, 1, failed)
        return validation

    def _offer(
        self, scope: Scope, camera_tokens: Sequence[CameraToken], caller: Caller
    ) -> "asyncio.Future[Validation]":
        camera_token, *alternatives = camera_tokens
        future = self._authority.validator.submit_async(
            camera_token, caller, scope, self._derivation, alternatives
        )
        self._deadlines.add(future, self._authority.settings.answer_timeout)
        return future

    def finish(self, scope: Scope, future: "asyncio.Future[Validation]") -> bytes:
        """Return the JSON of the verdict. Raises as the future does, or as `_check_repeat`.

        Raises UnknownAddressError for an unknown table or key index.
        """
        try:
            validation = future.result()
        except RateLimitedError:
            # The limit of FAILs was reached after `begin`, so the header fields are set again.
            rate_limit.tell(scope, self._authority.rate_limits, Kind.VALIDATE, get_caller(scope))
            raise
        self._check_repeat(validation)
        return self._phrase(validation, get_caller(scope))

    def _phrase(self, validation: Validation, caller: Caller) -> bytes:
        if validation.reason.told_to_caller is not None:
            raise UnknownAddressError(validation.reason)
        return to_json(self._verdict(validation, caller))


class _Published(_SingleValidation):
    """The endpoint for published clients, with their JSON and their key derivation (ADR 0001).

    An object without a well-formed token gets a 200 with `valid: false`, because these clients take
    every other status for a verdict and store it.
    """

    _derivation = PUBLISHED_CLIENTS
    _model: type[PublishedValidateRequest | LegacyValidateRequest] = PublishedValidateRequest

    def begin(self, scope: Scope, body: bytes) -> "asyncio.Future[Validation]":
        """Begin as the base class does. An object without a token gives a future that has failed.

        An exception instead would make the caller answer with a problem document.
        """
        try:
            return super().begin(scope, body)
        except _NoCameraTokenError as error:
            future: asyncio.Future[Validation] = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

    def finish(self, scope: Scope, future: "asyncio.Future[Validation]") -> bytes:
        """Return the JSON of the verdict, or of the response to an object without a token."""
        try:
            return super().finish(scope, future)
        except _NoCameraTokenError as error:
            return to_json(PublishedValidateResponse.malformed(str(error)))

    def _camera_tokens(self, body: bytes) -> Sequence[CameraToken]:
        value = parse_json(body)
        try:
            return checked(value, self._model).tokens()
        except InvalidRequestError as error:
            if isinstance(value, dict):
                raise _NoCameraTokenError(str(error)) from None
            raise

    def _phrase(self, validation: Validation, caller: Caller) -> bytes:  # noqa: ARG002
        return to_json(PublishedValidateResponse.of(validation.reason))


class _Legacy(_Published):
    """The endpoint for packed tokens of published Raspberry Pi clients, which name three tables."""

    _model = LegacyValidateRequest


class _NoCameraTokenError(Exception):
    """A published client's body is an object, but holds no camera token."""


class _TracedOne(_SingleValidation):
    """The endpoint for one camera token that also records the times for a trace."""

    def __init__(self, app: FastAPI, tracing: "Tracing") -> None:
        super().__init__(app)
        self._tracing = tracing

    def begin(self, scope: Scope, body: bytes) -> "asyncio.Future[Validation]":
        """Begin the trace, then begin as the base class does."""
        # On the fast path no middleware has begun the trace.
        self._tracing.begin(scope)
        _trace_of(scope).parsing()
        return super().begin(scope, body)

    async def _confirmed(
        self, scope: Scope, camera_tokens: Sequence[CameraToken], caller: Caller
    ) -> Validation:
        _trace_of(scope).parsed()
        return await super()._confirmed(scope, camera_tokens, caller)

    def _offer(
        self, scope: Scope, camera_tokens: Sequence[CameraToken], caller: Caller
    ) -> "asyncio.Future[Validation]":
        _trace_of(scope).offered()
        return super()._offer(scope, camera_tokens, caller)


class _TracedPublished(_TracedOne, _Published):
    """The traced endpoint for published clients."""


class _TracedLegacy(_TracedOne, _Legacy):
    """The traced endpoint for published Raspberry Pi clients."""


def _trace_of(scope: Scope) -> "RequestTrace":
    trace: RequestTrace = scope[TRACE]
    return trace


class _BatchValidation(_CameraTokens):
    """The endpoint for up to 1,000 camera tokens, which are judged in one transaction.

    Malformed elements get an error in their place and do not reach the validator.
    """

    async def answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        """Return the response with one result per element, in their order.

        Raises DatabaseUnavailableError or RateLimitedError for the whole batch.
        """
        settings = self._authority.settings
        caller = get_caller(scope)
        # The setting is meant for single tokens. A batch has at least 1 MiB.
        limit = max(settings.max_body_bytes, _BATCH_BODY_BYTES)
        body = await self._read(scope, receive, limit)
        limits = self._authority.rate_limits
        trace: RequestTrace | None = scope.get(TRACE)
        if trace is not None:
            trace.parsing()
        try:
            tokens = await parse_batch(body)
        except InvalidRequestError:
            rate_limit.consume(scope, limits, Kind.VALIDATE, caller)
            raise
        # Malformed elements cost as much as others.
        rate_limit.consume(scope, limits, Kind.VALIDATE, caller, len(tokens))
        elements = [element async for element in parse_elements(tokens)]
        camera_tokens = [each for each in elements if isinstance(each, CameraToken)]
        judged = await self._judge(scope, camera_tokens, caller, len(tokens))
        answers = iter(judged)
        results = []
        try:
            for place, each in enumerate(elements):
                if place % _RESULTS_AT_ONCE == _RESULTS_AT_ONCE - 1:
                    await asyncio.sleep(0)  # lets other requests run
                if isinstance(each, str):
                    results.append(_refused(each))
                else:
                    results.append(self._told(next(answers), caller))
        except DatabaseUnavailableError:
            # The caller gets none of the verdicts. `leave` records them as lost, so that a retry
            # gets them (ADR 0009).
            scope[UNANSWERED].leave()
            raise
        return _Json(to_json({"results": results}))

    async def _judge(
        self, scope: Scope, camera_tokens: Sequence[CameraToken], caller: Caller, cost: int
    ) -> Sequence[Validation | BirthmarkError]:
        """Submit the well-formed tokens to the validator and return an answer for each.

        With a shared rate limit store, `cost` units are taken from the store first. Raises
        RateLimitedError if the caller has gathered too many FAILs.
        """
        limits = self._authority.rate_limits
        shared = limits.shared
        trace: RequestTrace | None = scope.get(TRACE)
        if shared:
            if trace is not None:
                trace.parsed()
            await rate_limit.consume_shared(scope, limits, Kind.VALIDATE, caller, cost)
        if trace is not None:
            trace.offered()
        judged: Sequence[Validation | BirthmarkError] = ()
        try:
            _end_if_cancelled()
            if camera_tokens:
                future = self._authority.validator.submit_together(camera_tokens, caller, scope)
                self._deadlines.add(future, self._authority.settings.answer_timeout)
                judged = await future
        finally:
            if shared:
                failed = sum(self._counts(each) for each in judged)
                limits.release(Kind.VALIDATE, caller, cost, failed)
        # A limit of FAILs refuses a request as a whole, so the first answer speaks for all.
        if judged and isinstance(judged[0], RateLimitedError):
            rate_limit.tell(scope, limits, Kind.VALIDATE, caller)
            raise judged[0]
        return judged

    def _counts(self, validation: Validation | BirthmarkError) -> bool:
        return isinstance(validation, Validation) and counts_as_fail(validation, self._replay)

    def _told(
        self, validation: Validation | BirthmarkError, caller: Caller
    ) -> dict[str, str | None]:
        if isinstance(validation, BirthmarkError):
            raise validation
        try:
            self._check_repeat(validation)
        except TokenAlreadySubmittedError as refusal:
            return {"error": f"{refusal}."}
        error = validation.reason.told_to_caller
        return self._verdict(validation, caller) if error is None else _refused(error)


def _refused(error: str) -> dict[str, str | None]:
    return {"validation_result": Verdict.FAIL.value, "error": error}
