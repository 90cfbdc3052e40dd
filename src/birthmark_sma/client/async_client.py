"""Validate camera tokens from asyncio.

Calls made in one iteration of the event loop leave together in one batch. While `max_in_flight`
requests are in flight, further calls wait, and leave together too. A thousand calls at once
therefore cost the authority hardly more than one. A single call leaves at once.

Attempts without a verdict and waits are logged at INFO, a circuit that opens at WARNING. A log line
must never contain a camera token or an access key.
"""

import asyncio
import json
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from birthmark_sma.client.bundle_verification import VerifiedBundle, of_the_same_device
from birthmark_sma.client.calls import Call, Pause
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
from birthmark_sma.protocol.camera_token import CameraToken, to_wire

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class AsyncAuthorityClient:
    """Validates camera tokens with one authority, from one event loop.

    Open it once and keep it: it reuses connections. Every method returns outcomes. It raises only
    ClientMisuseError (the client is closed, or the event loop is a different one) and TypeError (an
    argument is not a camera token).
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
        """Configure the client. No request is sent.

        `access_key` is sent with every request. `client_certificate` (the files of a certificate
        and its key) authenticates the client instead. `ca_file` has the CAs that the server's
        certificate may come from; the default is the CAs of the system. `tls` replaces both
        arguments. `plaintext` allows http:// to other machines.

        Raises ConfigurationError.
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
        self._waiting: deque[Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pauses: list[Pause] = []
        """The waits of the requests in flight."""
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
        """Validate one camera token, and return the outcome within `deadline` seconds.

        The default is the deadline of the options.
        """
        [outcome] = await self.validate_many([camera_token], deadline=deadline)
        return outcome

    async def validate_many(
        self, camera_tokens: Iterable[CameraToken], *, deadline: float | None = None
    ) -> list[Outcome]:
        """Validate any number of camera tokens, and return the outcomes in the same order.

        `deadline` is as for `validate`. Raises TypeError, before anything is sent, if an item is
        not a camera token.
        """
        loop = self._own_loop()
        tokens = [*camera_tokens]
        for each in tokens:
            if not isinstance(each, CameraToken):
                raise TypeError(
                    f"Expected a CameraToken, but got an object of type {type(each).__name__}."
                )
        seconds = self._options.deadline if deadline is None else deadline
        until = loop.time() + (seconds if seconds > 0 else 0.0)
        self._callers += 1
        try:
            outcomes: list[Outcome] = []
            # More tokens than may wait at once would make their own call fail with OVERLOADED.
            size = self._options.max_waiting
            for start in range(0, len(tokens), size):
                outcomes += await self._outcomes(tokens[start : start + size], loop, until)
            return outcomes
        finally:
            self._callers -= 1
            if not self._callers:
                self._idle.set()

    async def _outcomes(
        self, tokens: Sequence[CameraToken], loop: asyncio.AbstractEventLoop, until: float
    ) -> list[Outcome]:
        """Queue the tokens, wait until the deadline, and return what is known then."""
        calls = [Call(each, loop.create_future(), until) for each in tokens]
        try:
            for call in calls:
                self._offer(call, loop)
            left = max(0.0, until - loop.time())
            await asyncio.wait([each.future for each in calls], timeout=left)
            return [each.outcome_by_now(self._pauses, loop.time()) for each in calls]
        finally:  # a cancelled or late caller no longer needs its requests
            for call in calls:
                call.future.cancel()

    async def validate_bundle(
        self, bundle: VerifiedBundle, *, deadline: float | None = None
    ) -> Outcome:
        """Validate the camera token of a bundle that `verify_bundle` returned.

        The outcome is Fail if the token passes as that of another device than the signer of the
        bundle: the token was copied from elsewhere. This works only if the authority discloses
        device serials.
        """
        return of_the_same_device(
            bundle, await self.validate(bundle.camera_token, deadline=deadline)
        )

    async def close(self) -> None:
        """Wait for pending calls, at most until their deadlines, and close the connections.

        New calls raise ClientMisuseError from the start of `close`.
        """
        self._closed = True
        while self._callers:
            self._idle.clear()
            await self._idle.wait()
        left = [*self._tasks]  # their callers have given up
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- batching

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the client's event loop. Raises ClientMisuseError if it is another or closed."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClientMisuseError("This client is closed. Create a new one.")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClientMisuseError(
                "This client belongs to another event loop. Create one in each event loop."
            )
        return loop

    def _offer(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._waiting) >= self._options.max_waiting:
            call.future.set_result(
                Indeterminate(
                    Cause.OVERLOADED,
                    "Too many calls are waiting already. Try again later, or raise max_waiting.",
                )
            )
            return
        self._waiting.append(call)
        # Dispatch in the next iteration of the loop: all calls of this iteration then share a
        # batch.
        if not self._will_dispatch:
            self._will_dispatch = True
            loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Send the waiting calls in batches, up to `max_in_flight` requests at once."""
        self._will_dispatch = False
        # The rate limit that the authority announced has lapsed, so full batches are tried again.
        if asyncio.get_running_loop().time() > self._limited_until:
            self._at_most = self._options.max_batch
        while self._waiting and len(self._tasks) < self._options.max_in_flight:
            calls: list[Call] = []
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

    # --- sending

    async def _ask(self, calls: list[Call]) -> None:
        """Validate the tokens of one batch, and set the outcome of each caller that still waits."""
        try:
            outcomes = await self._exchange(calls)
        except Exception:
            # A caller must not wait forever, and must not take a fault of this program for a
            # verdict.
            _log.exception("The client failed while it sent a request")
            outcomes = [
                Indeterminate(Cause.NOT_UNDERSTOOD, "The client failed. Its log has the error.")
            ] * len(calls)
        if outcomes is None:
            return
        for call, outcome in zip(calls, outcomes, strict=True):
            if not call.future.done():
                call.future.set_result(outcome)

    async def _exchange(self, calls: list[Call]) -> Sequence[Outcome] | None:
        """Return the outcomes, or None if the calls are back in the queue for smaller batches."""
        loop = asyncio.get_running_loop()
        body = _body(calls)
        retry_state = RetryState(
            len(calls),
            # The latest deadline of the batch. `_outcomes` ends the wait of callers with an earlier
            # one.
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
                    # `on_result` may change the state; `_log_heard` logs each change once.
                    before = self._gate.circuit.state
                    step = retry_state.on_result(step, found, loop.time(), request_id=request_id)
                    self._log_heard(found, request_id, before)
                case SplitBatch():  # `_learn` has already lowered `_at_most`
                    # Back to the front of the queue, in their order, because they came before the
                    # waiting calls.
                    self._waiting.extendleft(reversed(calls))
                    return None
        return step.outcomes

    async def _wait(self, wait: Wait, calls: Sequence[Call]) -> None:
        """Wait, and record the reason for callers whose deadline passes meanwhile."""
        now = asyncio.get_running_loop().time()
        pause = Pause(wait.because, now + (wait.because.retry_after or 0.0))
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
            _log.info("Request %s got no verdict (%s): %s", request_id, found.cause, found.detail)
        after = self._gate.circuit.state
        if after is State.OPEN and before is not State.OPEN:
            _log.log(
                # A probe in half-open that failed is no news: the circuit was open before.
                logging.WARNING if before is State.CLOSED else logging.INFO,
                "The circuit breaker is open, so nothing is sent for %.1f s. The last failure: %s",
                self._options.circuit_rest,
                self._gate.last_failure,
            )
        elif after is State.CLOSED and before is not State.CLOSED:
            _log.info("The circuit breaker is closed: the authority answers again")

    async def _attempt(
        self, send: Send, body: bytes, request_id: str, count: int
    ) -> Sequence[Outcome] | TransportError:
        try:
            async with asyncio.timeout(send.seconds):
                reply = await self._transport.attempt(body, request_id, send.seconds)
        except TimeoutError:
            return TransportError(Cause.TIMED_OUT, "The authority did not answer in time.")
        except BaseException:
            # Return the permit, or a cancelled probe would leave the circuit half-open forever.
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
        """Limit the batch size to the rate limit that the authority announced in its response."""
        if most is not None:
            self._at_most = min(most, self._options.max_batch)
            self._limited_until = asyncio.get_running_loop().time() + MAX_HOLD


def _body(calls: Sequence[Call]) -> bytes:
    tokens = [to_wire(call.camera_token) for call in calls]
    return json.dumps({"tokens": tokens}, separators=(",", ":")).encode("ascii")
