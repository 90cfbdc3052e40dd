"""The client for asyncio.

Calls that come while others are on their way are gathered and go out together, so that a thousand
at once cost the authority hardly more than one. A call that comes alone goes out at once.

What it does besides sending is logged: attempts that brought no verdict and waits at INFO, a
circuit that opens at WARNING. No log line holds a camera token or an access key.
"""

import asyncio
import json
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from birthmark_sma.client.bundle_verification import VerifiedBundle, of_the_same_device
from birthmark_sma.client.circuit_breaker import State
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Cause, Indeterminate, Outcome
from birthmark_sma.client.responses import TransportError, most_at_once, read
from birthmark_sma.client.retry import (
    MAX_HOLD,
    ConcurrencyState,
    Done,
    RetryState,
    Send,
    SplitBatch,
    Wait,
)
from birthmark_sma.client.transport import Transport, tls_context
from birthmark_sma.errors import ClientMisuseError, ConfigurationError
from birthmark_sma.protocol.camera_token import CameraToken

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class _Pause:
    """A wait before the next attempt: why, and until when the authority asked to be left alone."""

    fault: TransportError
    until: float

    def told(self, now: float) -> TransportError:
        """Return the fault with the `retry_after` that is left."""
        left = max(0.0, self.until - now)
        return replace(self.fault, retry_after=left if self.fault.retry_after else None)


@dataclass(eq=False, slots=True)
class _Call:
    """A camera token that somebody waits for."""

    camera_token: CameraToken = field(repr=False)
    future: "asyncio.Future[Outcome]"
    deadline: float
    attempts: int = 0
    request_id: str | None = None
    pause: _Pause | None = None
    """What it waits for, unless it is under way."""
    last: TransportError | None = None
    """What the attempt before the present one brought."""

    def outcome_by_now(self, others: Iterable[_Pause], now: float) -> Outcome:
        """Return the outcome. `others` is what holds up those before it, if it was never sent."""
        if self.future.done():
            return self.future.result()
        pause = self.pause
        if pause is None and self.attempts == 0:
            pause = max(others, key=lambda each: each.until, default=None)
        if pause is not None:
            fault = pause.told(now)
        elif self.attempts == 0:
            fault = TransportError(Cause.TIMED_OUT, "The time was used up waiting to ask.")
        else:
            before = "" if self.last is None else f" The attempt before: {self.last.detail}"
            fault = TransportError(Cause.TIMED_OUT, f"There was no answer in time.{before}")
        return Indeterminate(
            fault.cause, fault.detail, self.attempts, fault.retry_after, self.request_id
        )


class AsyncAuthorityClient:
    """Asks one authority about camera tokens, from one event loop.

    Open it once and keep it: connections are used again. Every method returns outcomes, and raises
    ClientMisuseError where the client is closed or the event loop is another, TypeError for what is
    no camera token; nothing else.
    """

    def __init__(
        self,
        url: str,
        *,
        access_key: str | None = None,
        client_certificate: Sequence[Path] | None = None,
        ca_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        plaintext: bool = False,
        options: Options | None = None,
    ) -> None:
        """Remember where the authority is; nothing is sent.

        `access_key` goes with every request; `client_certificate`, the files of a certificate and
        its key, does in its place. `ca_file` has the CAs that the server's certificate may come
        from, else the system's count; `tls` stands for both. `plaintext` allows http:// beyond this
        machine. Raises ConfigurationError.
        """
        if tls is not None and (ca_file is not None or client_certificate is not None):
            raise ConfigurationError("Give either tls, or ca_file and client_certificate.")
        self._options = options or Options()
        self._transport = Transport(
            url,
            options=self._options,
            access_key=access_key,
            tls=tls or tls_context(ca_file, client_certificate),
            proxy=proxy,
            plaintext=plaintext,
        )
        self._gate = ConcurrencyState.of(self._options)
        self._waiting: deque[_Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses: list[_Pause] = []
        """What the requests that are under way wait for."""
        self._at_most = self._options.max_batch
        self._limited_until = 0.0
        self._will_dispatch = False
        self._callers = 0
        self._idle = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def validate(
        self, camera_token: CameraToken, *, deadline: float | None = None
    ) -> Outcome:
        """Ask about one camera token; the outcome is there after `deadline` seconds at the latest.

        Without one, that of the options counts.
        """
        [outcome] = await self.validate_many([camera_token], deadline=deadline)
        return outcome

    async def validate_many(
        self, camera_tokens: Iterable[CameraToken], *, deadline: float | None = None
    ) -> list[Outcome]:
        """Ask about any number; the outcomes are in the order of the camera tokens.

        Raises TypeError, before anything is sent, for what is no camera token.
        """
        loop = self._own_loop()
        tokens = [*camera_tokens]
        for each in tokens:
            if not isinstance(each, CameraToken):
                raise TypeError(f"This is no CameraToken but of type {type(each).__name__}.")
        seconds = self._options.deadline if deadline is None else deadline
        until = loop.time() + (seconds if seconds > 0 else 0.0)
        self._callers += 1
        try:
            outcomes: list[Outcome] = []
            for part in _parts(tokens, self._options.max_waiting):
                outcomes += await self._outcomes(part, loop, until)
            return outcomes
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    async def _outcomes(
        self, tokens: Sequence[CameraToken], loop: asyncio.AbstractEventLoop, until: float
    ) -> list[Outcome]:
        calls = [_Call(each, loop.create_future(), until) for each in tokens]
        try:
            for call in calls:
                self._offer(call, loop)
            left = max(0.0, until - loop.time())
            await asyncio.wait([each.future for each in calls], timeout=left)
            return [each.outcome_by_now(self._pauses, loop.time()) for each in calls]
        finally:  # whoever is cancelled, or is out of time, waits for nothing more
            for call in calls:
                call.future.cancel()

    async def validate_bundle(
        self, bundle: VerifiedBundle, *, deadline: float | None = None
    ) -> Outcome:
        """Ask about the camera token of a bundle that `verify_bundle` found good.

        A token that passes as another device's than the one that signed the bundle is Fail: it was
        taken from elsewhere. That shows only where the authority discloses serials.
        """
        return of_the_same_device(
            bundle, await self.validate(bundle.camera_token, deadline=deadline)
        )

    async def close(self) -> None:
        """Let what is on its way come to its end, at most until its deadline; then close."""
        self._closed = True
        while self._callers:
            self._idle.clear()
            await self._idle.wait()
        left = [*self._tasks]  # for which nobody waits any more
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- gathering

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClientMisuseError("This client is closed.")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClientMisuseError("This client belongs to another event loop.")
        return loop

    def _offer(self, call: _Call, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._waiting) >= self._options.max_waiting:
            call.future.set_result(Indeterminate(Cause.OVERLOADED, "Too many calls wait already."))
            return
        self._waiting.append(call)
        # In the loop's next round: what is asked for in this one goes out together.
        if not self._will_dispatch:
            self._will_dispatch = True
            loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Send what waits, as far as not enough is on its way already."""
        self._will_dispatch = False
        if asyncio.get_running_loop().time() > self._limited_until:
            self._at_most = self._options.max_batch
        while self._waiting and len(self._tasks) < self._options.max_in_flight:
            calls: list[_Call] = []
            while self._waiting and len(calls) < self._at_most:
                call = self._waiting.popleft()
                if not call.future.done():
                    calls.append(call)
            if calls:
                task = asyncio.get_running_loop().create_task(self._ask(calls))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._waiting:
            self._dispatch()

    # --- asking

    async def _ask(self, calls: list[_Call]) -> None:
        """Ask about some camera tokens, and tell whoever still waits."""
        try:
            outcomes = await self._exchange(calls)
        except Exception:
            # Nobody may wait for ever, nor take a fault of this program for a verdict.
            _log.exception("A request could not be made")
            outcomes = [Indeterminate(Cause.NOT_UNDERSTOOD, "The client itself failed.")] * len(
                calls
            )
        if outcomes is None:
            return
        for call, outcome in zip(calls, outcomes, strict=True):
            if not call.future.done():
                call.future.set_result(outcome)

    async def _exchange(self, calls: list[_Call]) -> Sequence[Outcome] | None:
        """Return the outcomes, or None where the calls wait again, to be asked in parts."""
        loop = asyncio.get_running_loop()
        body = _body(calls)
        retry_state = RetryState(
            len(calls),
            deadline=max(call.deadline for call in calls),
            options=self._options,
            gate=self._gate,
            chance=_chance,
        )
        step = retry_state.begin(loop.time())
        while not isinstance(step, Done):
            match step:
                case Wait():
                    await self._wait(step, calls)
                    step = retry_state.begin(loop.time())
                case Send():
                    request_id = secrets.token_hex(16)
                    for call in calls:
                        call.attempts, call.request_id = step.attempt, request_id
                    found = await self._attempt(step, body, request_id, len(calls))
                    before = self._gate.circuit.state
                    step = retry_state.on_result(step, found, loop.time(), request_id=request_id)
                    self._log_heard(found, request_id, before)
                case SplitBatch():  # `_learn` has seen it too
                    self._waiting.extendleft(reversed(calls))
                    return None
        return step.outcomes

    async def _wait(self, wait: Wait, calls: Sequence[_Call]) -> None:
        """Wait, and let those who are out of time meanwhile know what for."""
        now = asyncio.get_running_loop().time()
        pause = _Pause(wait.because, now + (wait.because.retry_after or 0.0))
        _log.info("The next attempt is in %.1f s: %s", wait.seconds, wait.because.detail)
        self._pauses.append(pause)
        for call in calls:
            call.pause = pause
        try:
            await asyncio.sleep(wait.seconds)
        finally:
            self._pauses.remove(pause)
            for call in calls:
                call.pause, call.last = None, wait.because

    def _log_heard(
        self, found: Sequence[Outcome] | TransportError, request_id: str, before: State
    ) -> None:
        if isinstance(found, TransportError):
            _log.info(
                "Request %s brought no verdict (%s): %s", request_id, found.cause, found.detail
            )
        after = self._gate.circuit.state
        if after is State.OPEN and before is not State.OPEN:
            _log.log(
                # Opened again by its one request, it is no news.
                logging.WARNING if before is State.CLOSED else logging.INFO,
                "The circuit is open: nothing is sent for %.1f s. The last failure: %s",
                self._options.circuit_rest,
                self._gate.last_failure,
            )
        elif after is State.CLOSED and before is not State.CLOSED:
            _log.info("The circuit is closed: the authority answers again")

    async def _attempt(
        self, send: Send, body: bytes, request_id: str, count: int
    ) -> Sequence[Outcome] | TransportError:
        try:
            async with asyncio.timeout(send.seconds):
                reply = await self._transport.attempt(body, request_id, send.seconds)
        except TimeoutError:
            return TransportError(Cause.TIMED_OUT, "The authority did not answer in time.")
        except BaseException:
            self._gate.circuit.abandoned(send.ticket)
            raise
        if isinstance(reply, TransportError):
            return reply
        self._learn(most_at_once(reply.headers))
        return read(
            reply,
            count=count,
            request_id=request_id,
            now=datetime.now(UTC),
            check_request_id=self._options.check_request_id,
        )

    def _learn(self, most: int | None) -> None:
        """Ask about no more at once than passes; each answer of a limited authority says it."""
        if most is not None:
            self._at_most = min(most, self._options.max_batch)
            self._limited_until = asyncio.get_running_loop().time() + MAX_HOLD


def _parts(tokens: Sequence[CameraToken], at_most: int) -> Iterator[Sequence[CameraToken]]:
    """Cut into parts, none of which alone is more than may wait at once."""
    return (tokens[begin : begin + at_most] for begin in range(0, len(tokens), at_most))


def _body(calls: Sequence[_Call]) -> bytes:
    tokens = [
        {
            "encrypted_nuc_hash": call.camera_token.encrypted_nuc_hash.hex(),
            "table_id": call.camera_token.table_id,
            "key_index": call.camera_token.key_index,
            "nonce": call.camera_token.nonce.hex(),
        }
        for call in calls
    ]
    return json.dumps({"tokens": tokens}, separators=(",", ":")).encode("ascii")
