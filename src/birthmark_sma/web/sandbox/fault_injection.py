"""Plays what requests ask for, in front of an application that answers as ever.

The contract of this room: a request that asks for nothing passes as it came, and so does one that
the door would not let in. Problem documents are those of the authority itself, made of the same
errors, so that a client meets here what it will meet in earnest. What is scripted here is not in
the audit trail, but for verdicts, which the authority gives itself
(`authority.sandbox.scripted_validation`).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma import errors
from birthmark_sma.authority.authority import CRL_PATH, Authority
from birthmark_sma.authority.devices import revocation
from birthmark_sma.authority.sandbox.certificates import clock_ahead
from birthmark_sma.authority.sandbox.validation import as_of_table
from birthmark_sma.errors import (
    DeviceStatusError,
    TokenAlreadySubmittedError,
    UnknownDeviceError,
)
from birthmark_sma.web.api import provision, validate
from birthmark_sma.web.api.models import rfc3339
from birthmark_sma.web.middleware.authentication import Door, route_of
from birthmark_sma.web.middleware.timeouts import asked
from birthmark_sma.web.problems import (
    Kind,
    RequestError,
    problem,
    respond,
)
from birthmark_sma.web.sandbox import scenario_catalog, scenario_matching
from birthmark_sma.web.sandbox.connection_faults import CUT, Cut
from birthmark_sma.web.sandbox.request_repeats import Repetitions, digest_of
from birthmark_sma.web.sandbox.scenario_catalog import Asked, UnknownScenarioError

_SECONDS = 10.0
_HEADER = scenario_catalog.HEADER.lower().encode()
_UNKNOWN = Kind(400, "unknown-scenario", "Unknown scenario")
_OFFSETS = {"expired": timedelta(days=-740), "not-yet-valid": timedelta(days=7)}
_LOGIN_PAGE = "<!doctype html><title>Free Wi-Fi</title><p>Please accept our terms.</p>"
_ELSEWHERE = "/sandbox"

_PROBLEMS: Mapping[str, Callable[[int], Exception]] = {
    "unauthenticated": lambda _: errors.UnauthenticatedError("This access key is not known here."),
    "forbidden": lambda _: errors.InsufficientScopeError(
        "This access key is good for something else."
    ),
    "conflict": lambda _: errors.DeviceAlreadyProvisionedError(),
    "rate-limited": lambda seconds: errors.RateLimitedError(
        f"Too many requests. Try again in {seconds} seconds.", retry_after=seconds, policy="sandbox"
    ),
    "internal-error": lambda _: RuntimeError("asked for by a scenario of the sandbox"),
    "unavailable": lambda _: errors.DatabaseUnavailableError(),
}

Act: TypeAlias = Callable[["Performance"], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Performance:
    """One request that asks for something, and what would answer it."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    body: bytes = field(repr=False)
    """Where it may ask for something, or is what tells two requests apart; else empty."""
    asked: Asked
    by_header: bool

    def verdict_by_header(self) -> AbstractContextManager[None]:
        """Have the authority give the verdict that a header asks for, to every camera token.

        A table id that asks stands in the camera token, where the authority sees it by itself.
        """
        table_id = self.asked.scenario.table_id
        return as_of_table(table_id) if self.by_header and table_id is not None else nullcontext()

    async def answer(self, answer: ASGIApp) -> None:
        """Answer with this."""
        await answer(self.scope, self.receive, self.send)

    async def answer_truly(self) -> None:
        """Let the authority answer."""
        await self.app(self.scope, self.receive, self.send)

    async def true_answer(self) -> tuple[Message, bytes]:
        """Let the authority answer, and hold the answer back: its head and its body."""
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

    async def release(self, head: Message, body: bytes) -> None:
        """Send an answer that was held back."""
        length = (b"content-length", str(len(body)).encode())
        kept = [field for field in head["headers"] if field[0].lower() != b"content-length"]
        await self.send({**head, "headers": [*kept, length]})
        await self.send({"type": "http.response.body", "body": body})

    async def cut(self, *, reset: bool = False) -> None:
        """Cut the connection, and wait until that is noticed, so that nobody answers any more."""
        cut: Cut = self.scope[CUT]
        cut(reset)
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def device_serial(self) -> str:
        """Of a request to provision a device, its serial."""
        value = scenario_matching.parsed(self.body)
        serial = value.get("device_serial") if isinstance(value, dict) else None
        return serial if isinstance(serial, str) else ""


class Stage:
    """The ASGI application before all others."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
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
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look for what a request asks for, and play it, or hand on."""
        if scope["type"] != "http" or not self._is_let_in(scope):
            await self._app(scope, receive, send)
            return
        told = [value for name, value in scope["headers"] if name == _HEADER]
        body, receive = await scenario_matching.peek(scope, receive)
        try:
            asked_for = scenario_matching.find(scope, told, body)
        except UnknownScenarioError as error:
            await problem(Request(scope), _UNKNOWN, str(error))(scope, receive, send)
            return
        if asked_for is None:
            await self._app(scope, receive, send)
            return
        marking = _marking(send, asked_for.scenario.name)
        performance = Performance(
            app=self._app,
            scope=scope,
            receive=receive,
            send=marking,
            body=body,
            asked=asked_for,
            by_header=bool(told),
        )
        await self._play(performance)

    def _is_let_in(self, scope: Scope) -> bool:
        """Whether the door would let a request in: else it says why not, behind this."""
        door: Door = self._state.door
        try:
            door.admit(scope)
        except (RequestError, errors.BirthmarkError):
            return False
        return True

    async def _play(self, performance: Performance) -> None:
        name = performance.asked.scenario.name
        fault = _PROBLEMS.get(name)
        if fault is not None:
            answer = respond(Request(performance.scope), fault(performance.asked.number))
            if "retry-after" in answer.headers:
                answer.headers["retry-after"] = str(performance.asked.number)
            await performance.answer(answer)
        elif name in self._acts:
            await self._acts[name](performance)
        else:
            with performance.verdict_by_header():
                await performance.answer_truly()

    async def _already_submitted(self, performance: Performance) -> None:
        """Recorded as any other, and no verdict told; in a batch, of those elements alone."""
        with performance.verdict_by_header():
            head, body = await performance.true_answer()
        if head["status"] != 200:
            await performance.release(head, body)
        elif route_of(performance.scope) != validate.BATCH_PATH:
            error = TokenAlreadySubmittedError()
            await performance.answer(respond(Request(performance.scope), error))
        else:
            await performance.release(head, _without_verdicts(body, performance))

    # --- the connection

    async def _slow(self, performance: Performance) -> None:
        await asyncio.sleep(performance.asked.number)
        await performance.answer_truly()

    async def _cut(self, performance: Performance) -> None:
        await performance.cut()

    async def _reset(self, performance: Performance) -> None:
        await performance.cut(reset=True)

    async def _truncated(self, performance: Performance) -> None:
        head, body = await performance.true_answer()
        await performance.send(head)
        half = {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
        await performance.send(half)
        await asyncio.sleep(0.01)  # what is written is sent with the loop's next turn
        await performance.cut()

    async def _garbage(self, performance: Performance) -> None:
        await performance.answer(Response(_LOGIN_PAGE, media_type="text/html"))

    async def _redirected(self, performance: Performance) -> None:
        await performance.answer(RedirectResponse(_ELSEWHERE, 302))

    async def _recovers(self, performance: Performance) -> None:
        request = digest_of(performance.scope, performance.body, performance.asked)
        if self._repetitions.seen(request) <= performance.asked.number:
            error = errors.DatabaseUnavailableError()
            await performance.answer(respond(Request(performance.scope), error))
        else:
            self._repetitions.forget(request)
            await performance.answer_truly()

    async def _lost(self, performance: Performance) -> None:
        request = digest_of(performance.scope, performance.body, performance.asked)
        if self._repetitions.seen(request) <= performance.asked.number:
            await performance.true_answer()
            await performance.cut()
        else:
            self._repetitions.forget(request)
            await performance.answer_truly()

    # --- time

    async def _clock(self, performance: Performance) -> None:
        offset = timedelta(days=performance.asked.number)
        path = route_of(performance.scope)
        if path == provision.PATH:
            with clock_ahead(offset):
                await performance.answer_truly()
        elif path == CRL_PATH:
            await performance.answer(await self._list_as_of(datetime.now(UTC) + offset))
        else:
            head, body = await performance.true_answer()
            await performance.release(head, _dated(body, offset))

    async def _certified_then(self, performance: Performance) -> None:
        offset = _OFFSETS[performance.asked.scenario.name]
        with clock_ahead(offset):
            await performance.answer_truly()

    async def _list_as_of(self, now: datetime) -> Response:
        authority = self._authority
        signed = await asked(
            self._state.askers,
            lambda: revocation.crl_as_of(
                authority.database, authority.issuer.certificate, authority.issuer.signer, now
            ),
            _SECONDS,
        )
        return Response(signed, media_type="application/pkix-crl")

    # --- devices

    async def _taken_out(self, performance: Performance) -> None:
        head, body = await performance.true_answer()
        if head["status"] == 200:
            serial, revoked = performance.device_serial, performance.asked.scenario.name
            await asked(self._state.askers, lambda: self._take_out(serial, how=revoked), _SECONDS)
        await performance.release(head, body)

    def _take_out(self, device_serial: str, *, how: str) -> None:
        # It is so already where the first answer was asked for again.
        with suppress(DeviceStatusError, UnknownDeviceError):
            if how == "revoked":
                revocation.revoke_device(self._authority.database, device_serial, "key_compromise")
            else:
                revocation.suspend_device(self._authority.database, device_serial)

    @property
    def _authority(self) -> Authority:
        authority: Authority = self._state.authority
        return authority


def _without_verdicts(body: bytes, performance: Performance) -> bytes:
    """Take the verdicts of those elements out of the answer to a batch that came before."""
    answer, refusal = json.loads(body), {"error": f"{TokenAlreadySubmittedError()}."}
    tokens = scenario_matching.tokens_of(performance.body)
    for place, (token, result) in enumerate(zip(tokens, answer["results"], strict=True)):
        asks = scenario_catalog.by_token(token)
        came_before = performance.by_header or asks == performance.asked
        if came_before and "manufacturer_id" in result:  # else it is malformed, and it says so
            answer["results"][place] = refusal
    return json.dumps(answer, separators=(",", ":")).encode()


def _dated(body: bytes, offset: timedelta) -> bytes:
    """Move the times in an answer to a validation."""
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
