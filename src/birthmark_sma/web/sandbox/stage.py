"""Plays what requests ask for, in front of an application that answers as ever.

The contract of this room: a request that asks for nothing passes as it came. Problem documents are
those of the authority itself, made of the same errors, so that a client meets here what it will
meet in earnest. What is scripted here is not in the audit trail, but for verdicts, which the
authority gives itself (`authority.sandbox.scripted_validation`).
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeAlias

from cryptography.hazmat.primitives.serialization import Encoding
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma import errors
from birthmark_sma.authority import revocation
from birthmark_sma.authority.authority import CRL_PATH, Authority
from birthmark_sma.authority.sandbox.scripted_devices import ClockTravel
from birthmark_sma.authority.sandbox.scripted_verdicts import VERDICTS
from birthmark_sma.errors import DeviceStatusError, UnknownDeviceError
from birthmark_sma.web import provision, validate
from birthmark_sma.web.asking import asked
from birthmark_sma.web.intake import parse_json
from birthmark_sma.web.problems import InvalidRequestError, Kind, problem, respond
from birthmark_sma.web.sandbox import scenarios
from birthmark_sma.web.sandbox.http_protocol import CUT, Cut
from birthmark_sma.web.sandbox.scenarios import Asked, Place, UnknownScenarioError
from birthmark_sma.web.wire import rfc3339

_VALIDATIONS = frozenset({validate.PATH, validate.BATCH_PATH})
_SPOKEN_TO = _VALIDATIONS | {provision.PATH}
_BODY_BYTES = 1024 * 1024
_REMEMBERED = 10_000
_SECONDS = 10.0
_HEADER = scenarios.HEADER.lower().encode()
_UNKNOWN = Kind(400, "unknown-scenario", "Unknown scenario")
_OFFSETS = {"expired": timedelta(days=-740), "not-yet-valid": timedelta(days=7)}
_LOGIN_PAGE = "<!doctype html><title>Free Wi-Fi</title><p>Please accept our terms.</p>"
_ELSEWHERE = "/sandbox"

_PROBLEMS: Mapping[str, Callable[[int], Exception]] = {
    "unauthenticated": lambda _: errors.UnauthenticatedError("This access key is not known here."),
    "forbidden": lambda _: errors.InsufficientScopeError(
        "This access key is good for something else."
    ),
    "already-submitted": lambda _: errors.TokenAlreadySubmittedError(),
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
    asked: Asked

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
        value = _parsed(self.body)
        serial = value.get("device_serial") if isinstance(value, dict) else None
        return serial if isinstance(serial, str) else ""


class Stage:
    """The ASGI application before all others."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
        self._times = _Times()
        self._acts: Mapping[str, Act] = {
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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = [value for name, value in scope["headers"] if name == _HEADER]
        body, receive = await _peeked(scope, receive)
        try:
            if len(told) > 1:
                raise UnknownScenarioError(f"{scenarios.HEADER} stands in the request twice.")
            if told:
                asked_for: Asked | None = scenarios.by_header(told[0].decode("latin-1"))
            else:
                asked_for = _asked_in(scope, body)
            if asked_for is not None:
                _check_place(asked_for, scope)
        except UnknownScenarioError as error:
            await problem(Request(scope), _UNKNOWN, str(error))(scope, receive, send)
            return
        if asked_for is None:
            await self._app(scope, receive, send)
            return
        marking = _marking(send, asked_for.scenario.name)
        performance = Performance(
            app=self._app, scope=scope, receive=receive, send=marking, body=body, asked=asked_for
        )
        await self._play(performance, by_header=bool(told))

    async def _play(self, performance: Performance, *, by_header: bool) -> None:
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
            if by_header:
                _put_table_id(performance)
            await performance.answer_truly()

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
        if self._times.seen(performance) <= performance.asked.number:
            error = errors.DatabaseUnavailableError()
            await performance.answer(respond(Request(performance.scope), error))
        else:
            await performance.answer_truly()

    async def _lost(self, performance: Performance) -> None:
        if self._times.seen(performance) <= performance.asked.number:
            await performance.true_answer()
            await performance.cut()
        else:
            await performance.answer_truly()

    # --- time

    async def _clock(self, performance: Performance) -> None:
        offset = timedelta(days=performance.asked.number)
        path = performance.scope["path"]
        if path == provision.PATH:
            with self._clock_of_certificates().set(performance.device_serial, offset):
                await performance.answer_truly()
        elif path == CRL_PATH:
            await performance.answer(await self._list_as_of(datetime.now(UTC) + offset))
        else:
            head, body = await performance.true_answer()
            await performance.release(head, _dated(body, offset))

    async def _certified_then(self, performance: Performance) -> None:
        offset = _OFFSETS[performance.asked.scenario.name]
        with self._clock_of_certificates().set(performance.device_serial, offset):
            await performance.answer_truly()

    async def _list_as_of(self, now: datetime) -> Response:
        authority = self._authority
        signed = await asked(
            self._state.askers,
            lambda: revocation.current_crl(
                authority.database, authority.issuer.certificate, authority.issuer.signer, now
            ),
            _SECONDS,
        )
        return Response(signed.public_bytes(Encoding.DER), media_type="application/pkix-crl")

    def _clock_of_certificates(self) -> ClockTravel:
        clock = self._authority.sandbox
        assert clock is not None  # noqa: S101  checked before a sandbox is served
        return clock

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


class _Times:
    """How often the very same request has come; of the last so many, so that it stays small."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def seen(self, performance: Performance) -> int:
        """Count a request, and say the how manieth it is."""
        scope = performance.scope
        line = f"{scope['method']} {scope['path']} {performance.asked.scenario.name} ".encode()
        digest = sha256(line + performance.body).digest()
        times = self._seen.pop(digest, 0) + 1
        self._seen[digest] = times
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return times


async def _peeked(scope: Scope, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body of a request whose body may ask for something, and how to read it again.

    One that is too large is handed on as far as it was read, and asks for nothing.
    """
    if scope["method"] != "POST" or scope["path"] not in _SPOKEN_TO:
        return b"", receive
    messages: list[Message] = []
    body = bytearray()
    more = True
    while more and len(body) <= _BODY_BYTES:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kept = iter(messages)

    async def again() -> Message:
        return next(kept, None) or await receive()

    return (b"" if more else bytes(body)), again


def _asked_in(scope: Scope, body: bytes) -> Asked | None:
    path = scope["path"]
    if path not in _SPOKEN_TO or not body:
        return None
    value = _parsed(body)
    if not isinstance(value, dict):
        return None
    if path == provision.PATH:
        return scenarios.by_serial(value.get("device_serial"))
    if path == validate.PATH:
        return scenarios.by_token(value)
    tokens = value.get("tokens")
    for token in tokens if isinstance(tokens, list) else ():
        found = scenarios.by_token(token)
        # Verdicts each element gets by itself, from the authority.
        if found is not None and found.scenario.table_id not in VERDICTS:
            return found
    return None


def _check_place(asked_for: Asked, scope: Scope) -> None:
    """Raise UnknownScenarioError where a scenario is asked for that is for other requests."""
    path, place = scope["path"], asked_for.scenario.place
    fits = {
        Place.ANYWHERE: True,
        Place.VALIDATION: path in _VALIDATIONS,
        Place.PROVISIONING: path == provision.PATH,
        Place.TIMED: path in _SPOKEN_TO or path == CRL_PATH,
    }
    if not fits[place]:
        raise UnknownScenarioError(
            f"The scenario {asked_for.scenario.name} is for {place.value} alone."
        )


def _put_table_id(performance: Performance) -> None:
    """Let the authority give a verdict that the header asks for, to every token of the request."""
    value, table_id = _parsed(performance.body), performance.asked.scenario.table_id
    tokens = value.get("tokens", [value]) if isinstance(value, dict) else []
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict) and type(token.get("table_id")) is int:
            token["table_id"] = table_id
    body = json.dumps(value).encode()
    rest = performance.receive
    sent = False

    async def changed() -> Message:
        nonlocal sent
        if sent:
            return await rest()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    if value is not None:
        performance.receive = changed


def _parsed(body: bytes) -> Any:
    try:
        return parse_json(body)
    except InvalidRequestError:
        return None  # the authority says what is wrong with it


def _dated(body: bytes, offset: timedelta) -> bytes:
    """Move the times in an answer to a validation."""
    value = _parsed(body)
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
