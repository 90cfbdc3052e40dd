"""ASGI middleware of a sandbox that injects the fault that a request names.

`SandboxApplication` puts it in front of the session middleware and the routes, and behind metrics,
response headers and CORS, so these apply to injected faults, too. It must pass a request on
unchanged if the request names no scenario or cannot be authenticated. Its problem documents come
from the same exceptions as those of a real authority, so a client meets the same responses in
production. Injected faults are not in the audit log. Verdicts are, because the authority itself
returns them (`authority.sandbox.validation`).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma import errors
from birthmark_sma.authority.acts.actor import Actor, Source
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.store import FIRST_INTERMEDIATE
from birthmark_sma.authority.devices import revocation, states
from birthmark_sma.authority.sandbox.certificates import crl_as_of, shifted_clock
from birthmark_sma.authority.sandbox.validation import as_of_table
from birthmark_sma.counts import counted
from birthmark_sma.errors import DeviceStatusError, TokenAlreadySubmittedError, UnknownDeviceError
from birthmark_sma.protocol.verdict import rfc3339
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.problem_documents import error_response, problem_response
from birthmark_sma.web.problems import Problem, RequestError
from birthmark_sma.web.request_context import RequestContext, get_context
from birthmark_sma.web.routes import CRL, PROVISION, VALIDATE_BATCH, Credentials
from birthmark_sma.web.sandbox import scenario_catalog, scenario_matching
from birthmark_sma.web.sandbox.connection_faults import CUT, Cut
from birthmark_sma.web.sandbox.request_repeats import Repetitions, request_digest
from birthmark_sma.web.sandbox.scenario_catalog import Asked, UnknownScenarioError
from birthmark_sma.web.server_state import ServerState

_SECONDS = 10.0
_ACTOR = Actor("sandbox", Source.SERVER)  # who changes the status of devices
_HEADER = scenario_catalog.HEADER.lower().encode()
_UNKNOWN = Problem(400, "unknown-scenario", "Unknown scenario")
# Device certificates are valid for 730 days.
_OFFSETS = {"expired": timedelta(days=-740), "not-yet-valid": timedelta(days=7)}
# A captive portal: a client must not take its 200 for a response of the authority.
_LOGIN_PAGE = "<!doctype html><title>Free Wi-Fi</title><p>Please accept our terms.</p>"
_ELSEWHERE = "/sandbox"

# The scenarios that are one error of the authority. The argument is the scenario's number.
_PROBLEMS: Mapping[str, Callable[[int], Exception]] = {
    "unauthenticated": lambda _: errors.UnauthenticatedError("This access key is not known here."),
    "forbidden": lambda _: errors.InsufficientScopeError(
        "The scope of this access key does not include this path."
    ),
    "conflict": lambda _: errors.DeviceAlreadyProvisionedError(),
    "rate-limited": lambda seconds: errors.RateLimitedError(
        f"Too many requests. Try again in {counted(seconds, 'second')}.",
        retry_after=seconds,
        policy="sandbox",
    ),
    "internal-error": lambda _: RuntimeError("asked for by a scenario of the sandbox"),
    "unavailable": lambda _: errors.DatabaseUnavailableError(),
}

Act: TypeAlias = Callable[["InjectedRequest"], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class InjectedRequest:
    """A request that names a scenario, and the application that would respond to it."""

    app: ASGIApp
    context: RequestContext
    scope: Scope
    receive: Receive
    send: Send
    body: bytes = field(repr=False)
    """The body of a request to a validation or provisioning path; empty for other requests.

    It may name a scenario, and it distinguishes two requests to the same path.
    """
    asked: Asked
    by_header: bool

    def verdict_by_header(self) -> AbstractContextManager[None]:
        """Return a context in which the authority gives every camera token the header's verdict.

        A scenario that a table id names needs no context: the authority reads the table id itself.
        """
        table_id = self.asked.scenario.table_id
        return as_of_table(table_id) if self.by_header and table_id is not None else nullcontext()

    async def answer(self, answer: ASGIApp) -> None:
        """Send a response in place of the authority's."""
        await answer(self.scope, self.receive, self.send)

    async def forward(self) -> None:
        """Pass the request on to the authority."""
        await self.app(self.scope, self.receive, self.send)

    async def capture_response(self) -> tuple[Message, bytes]:
        """Let the authority respond, and return head and body without sending them."""
        head: Message = {}
        body = bytearray()

        async def hold(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
            else:
                body.extend(message.get("body", b""))

        await self.app(self.scope, self.receive, hold)
        return head, bytes(body)

    async def send_captured(self, head: Message, body: bytes) -> None:
        """Send a captured response, with the Content-Length of `body`."""
        length = (b"content-length", str(len(body)).encode())
        kept = [field for field in head["headers"] if field[0].lower() != b"content-length"]
        await self.send({**head, "headers": [*kept, length]})
        await self.send({"type": "http.response.body", "body": body})

    async def cut(self, *, reset: bool = False) -> None:
        """Cut the connection, with RST if `reset`, and wait until the server has noticed it.

        The wait ensures that no code responds to the request after the cut.
        """
        cut: Cut = self.scope[CUT]
        cut(reset)
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def device_serial(self) -> str:
        """The device serial in a provisioning request, or an empty string."""
        value = scenario_matching.parsed(self.body)
        serial = value.get("device_serial") if isinstance(value, dict) else None
        return serial if isinstance(serial, str) else ""


class FaultInjector:
    """ASGI middleware that looks for a scenario in each request and plays it."""

    def __init__(self, app: ASGIApp, find_state: Callable[[], ServerState]) -> None:
        self._app = app
        self._find_state = find_state
        self._repetitions = Repetitions()
        self._acts: Mapping[str, Act] = {
            "already-submitted": self._already_submitted,
            "slow": self._slow,
            "cut": self._cut,
            "reset": self._reset,
            "truncated": self._truncated,
            "garbage": self._garbage,
            "redirected": self._redirected,
            "recovers": self._recovers,
            "lost": self._lost,
            "clock": self._clock,
            "expired": self._certified_then,
            "not-yet-valid": self._certified_then,
            "revoked": self._taken_out,
            "suspended": self._taken_out,
            "retired": self._taken_out,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Play the scenario of a request, or pass the request on if it names none.

        Responds 400 if the header names an unknown scenario or one for other requests.
        """
        context = get_context(scope)
        if not self._is_let_in(context):
            await self._app(scope, receive, send)
            return
        told = context.header_values(_HEADER)
        body, receive = await scenario_matching.peek(context, receive)
        try:
            asked_for = scenario_matching.find(context.route, told, body)
        except UnknownScenarioError as error:
            await problem_response(context, _UNKNOWN, str(error))(scope, receive, send)
            return
        if asked_for is None:
            await self._app(scope, receive, send)
            return
        marking = _marking(send, asked_for.scenario.name)
        injected = InjectedRequest(
            app=self._app,
            context=context,
            scope=scope,
            receive=receive,
            send=marking,
            body=body,
            asked=asked_for,
            by_header=bool(told),
        )
        await self._play(injected)

    def _is_let_in(self, context: RequestContext) -> bool:
        """Return true if the request can be authenticated.

        If not, the request is passed on, and the authority returns the error.
        """
        authenticator = self._find_state().authenticator
        try:
            authenticator.check_host(context)
            if context.route.credentials is not Credentials.IGNORED:
                authenticator.authenticate(context)
        except (RequestError, errors.BirthmarkError):
            return False
        return True

    async def _play(self, injected: InjectedRequest) -> None:
        name = injected.asked.scenario.name
        fault = _PROBLEMS.get(name)
        if fault is not None:
            answer = error_response(injected.context, fault(injected.asked.number))
            # The client chose the number of seconds; the exception has its own.
            if "retry-after" in answer.headers:
                answer.headers["retry-after"] = str(injected.asked.number)
            await injected.answer(answer)
        elif name in self._acts:
            await self._acts[name](injected)
        else:  # all other scenarios are verdicts, which the authority itself gives
            with injected.verdict_by_header():
                await injected.forward()

    async def _already_submitted(self, injected: InjectedRequest) -> None:
        """Let the authority record the token, then respond 409 without the verdict.

        In a batch, replace the verdicts of the elements that name this scenario.
        """
        with injected.verdict_by_header():
            head, body = await injected.capture_response()
        if head["status"] != 200:
            await injected.send_captured(head, body)
        elif injected.context.route is not VALIDATE_BATCH:
            error = TokenAlreadySubmittedError()
            await injected.answer(error_response(injected.context, error))
        else:
            await injected.send_captured(head, _without_verdicts(body, injected))

    # --- the connection

    async def _slow(self, injected: InjectedRequest) -> None:
        await asyncio.sleep(injected.asked.number)
        await injected.forward()

    async def _cut(self, injected: InjectedRequest) -> None:
        await injected.cut()

    async def _reset(self, injected: InjectedRequest) -> None:
        await injected.cut(reset=True)

    async def _truncated(self, injected: InjectedRequest) -> None:
        head, body = await injected.capture_response()
        # The head keeps the Content-Length of the whole body.
        await injected.send(head)
        half = {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
        await injected.send(half)
        await injected.cut()

    async def _garbage(self, injected: InjectedRequest) -> None:
        await injected.answer(Response(_LOGIN_PAGE, media_type="text/html"))

    async def _redirected(self, injected: InjectedRequest) -> None:
        await injected.answer(RedirectResponse(_ELSEWHERE, 302))

    async def _recovers(self, injected: InjectedRequest) -> None:
        request = request_digest(injected.scope, injected.body, injected.asked)
        if self._repetitions.seen(request) <= injected.asked.number:
            error = errors.DatabaseUnavailableError()
            await injected.answer(error_response(injected.context, error))
        else:
            self._repetitions.forget(request)
            await injected.forward()

    async def _lost(self, injected: InjectedRequest) -> None:
        request = request_digest(injected.scope, injected.body, injected.asked)
        if self._repetitions.seen(request) <= injected.asked.number:
            # The authority records the request. Only its response is lost.
            await injected.capture_response()
            await injected.cut()
        else:
            self._repetitions.forget(request)
            await injected.forward()

    # --- time

    async def _clock(self, injected: InjectedRequest) -> None:
        offset = timedelta(days=injected.asked.number)
        route = injected.context.route
        if route is PROVISION:
            with shifted_clock(offset):
                await injected.forward()
        elif route is CRL:
            await injected.answer(await self._list_as_of(datetime.now(UTC) + offset))
        else:
            head, body = await injected.capture_response()
            await injected.send_captured(head, _dated(body, offset))

    async def _certified_then(self, injected: InjectedRequest) -> None:
        offset = _OFFSETS[injected.asked.scenario.name]
        with shifted_clock(offset):
            await injected.forward()

    async def _list_as_of(self, now: datetime) -> Response:
        authority = self._authority
        # The route is that of the first intermediate's list.
        issuer = authority.issuers.issuer(FIRST_INTERMEDIATE) or authority.issuer
        signed = await run_with_timeout(
            self._find_state().quick, lambda: crl_as_of(authority.database, issuer, now), _SECONDS
        )
        return Response(signed, media_type="application/pkix-crl")

    # --- devices

    async def _taken_out(self, injected: InjectedRequest) -> None:
        head, body = await injected.capture_response()
        if head["status"] == 200:
            serial, revoked = injected.device_serial, injected.asked.scenario.name
            await run_with_timeout(
                self._find_state().quick, lambda: self._take_out(serial, how=revoked), _SECONDS
            )
        await injected.send_captured(head, body)

    def _take_out(self, device_serial: str, *, how: str) -> None:
        with suppress(DeviceStatusError, UnknownDeviceError):
            if how == "revoked":
                change = states.revoke(_ACTOR, states.KEY_COMPROMISE)
            elif how == "retired":
                change = states.retire(_ACTOR)
            else:
                change = states.suspend(_ACTOR)
            revocation.change_device(self._authority.database, device_serial, change)

    @property
    def _authority(self) -> Authority:
        return self._find_state().authority


def _without_verdicts(body: bytes, injected: InjectedRequest) -> bytes:
    """Replace verdicts in a batch response by the error "already submitted".

    A header applies to all elements, a table id to its own element. Malformed elements keep their
    error.
    """
    answer, refusal = json.loads(body), {"error": f"{TokenAlreadySubmittedError()}."}
    tokens = scenario_matching.list_tokens(injected.body)
    for place, (token, result) in enumerate(zip(tokens, answer["results"], strict=True)):
        asks = scenario_catalog.by_token(token)
        came_before = injected.by_header or asks == injected.asked
        if came_before and "manufacturer_id" in result:  # malformed elements have none
            answer["results"][place] = refusal
    return json.dumps(answer, separators=(",", ":")).encode()


def _dated(body: bytes, offset: timedelta) -> bytes:
    """Shift the timestamps in a validation response. A response that is no JSON object stays."""
    value = scenario_matching.parsed(body)
    if not isinstance(value, dict):
        return body
    for each in value.get("results", [value]):
        if "timestamp" in each:
            each["timestamp"] = rfc3339(datetime.fromisoformat(each["timestamp"]) + offset)
    return json.dumps(value, separators=(",", ":")).encode()


def _marking(send: Send, name: str) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            field = (_HEADER, name.encode())
            message = {**message, "headers": [*message["headers"], field]}
        await send(message)

    return marked
