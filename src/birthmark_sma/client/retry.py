"""Decide for one request when to send, wait, retry and give up. PURE: no sockets and no clock.

`async_client` carries out each step and reports the result:

    step = retry_state.begin(now)
    Send       -> send within `seconds`, then `retry_state.on_result(step, result, now)`
    Wait       -> wait `seconds`, then `retry_state.begin(now)`
    SplitBatch -> too many tokens at once: send batches of `at_most`, each with its own RetryState
    Done       -> finished

Times are seconds of a monotonic clock. `chance()` returns a random number from 0 to 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from birthmark_sma.client.circuit_breaker import Circuit, CircuitPermit
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Cause, Indeterminate, Outcome
from birthmark_sma.client.responses import TransportError

MAX_HOLD = 60.0
"""The longest time, in seconds, that an announced rate limit stops requests."""
NOT_SENT = TransportError(Cause.TIMED_OUT, "The deadline passed before the request could be sent.")
_LIMITED = TransportError(Cause.RATE_LIMITED, "This caller exceeded its rate limit.")


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request, and wait at most `seconds` for its response."""

    seconds: float
    ticket: CircuitPermit
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing for `seconds`. `because` is the reason, with the remaining `retry_after`."""

    seconds: float
    because: TransportError


@dataclass(frozen=True, slots=True)
class SplitBatch:
    """The authority accepts at most `at_most` camera tokens at once."""

    at_most: int


@dataclass(frozen=True, slots=True)
class Done:
    """The request is finished, with one outcome for each camera token."""

    outcomes: Sequence[Outcome]


Step: TypeAlias = Send | Wait | SplitBatch | Done


@dataclass(slots=True)
class ConcurrencyState:
    """State that all requests of a client share. Only the client's event loop may use it.

    It has the circuit breaker, the last failure that the breaker recorded, and the time until which
    a 429 stops all requests.
    """

    circuit: Circuit
    last_failure: str = ""
    held_until: float = 0.0

    @classmethod
    def of(cls, options: Options) -> "ConcurrencyState":
        """Return the initial state, with a closed circuit."""
        return cls(Circuit(failures=options.circuit_failures, rest=options.circuit_rest))


class RetryState:
    """The state of one request for `count` camera tokens and its retries, until `deadline`."""

    def __init__(
        self,
        count: int,
        *,
        deadline: float,
        options: Options,
        gate: ConcurrencyState,
        chance: Callable[[], float],
    ) -> None:
        self._count = count
        self._deadline = deadline
        self._options = options
        self._gate = gate
        self._chance = chance
        self._attempts = 0
        self._request_id: str | None = None
        self._last: TransportError | None = None

    def begin(self, now: float) -> Step:
        """Return the first step, or the next step after a wait."""
        left = self._deadline - now
        if left <= 0:
            return self._settle(self._last or NOT_SENT)
        held = self._gate.held_until - now
        if held > 0:
            limited = self._last if self._last and self._last.cause is Cause.RATE_LIMITED else None
            return self._wait_or_settle(limited or _LIMITED, held, now)
        ticket = self._gate.circuit.admit(now)
        if ticket is None:
            rest = self._gate.circuit.rest_left(now)
            detail = "The last requests failed, so nothing is sent for a while."
            if self._gate.last_failure:
                detail += f" The last failure: {self._gate.last_failure}"
            return self._settle(TransportError(Cause.CIRCUIT_OPEN, detail, retry_after=rest))
        self._attempts += 1
        return Send(left, ticket, self._attempts)

    def on_result(
        self, send: Send, found: Sequence[Outcome] | TransportError, now: float, *, request_id: str
    ) -> Step:
        """Return the next step after an attempt."""
        self._request_id = request_id
        circuit = self._gate.circuit
        if not isinstance(found, TransportError):
            circuit.succeeded(send.ticket)
            return Done([self._counted(each) for each in found])
        if found.authority_ails:
            circuit.failed(send.ticket, now)
            self._gate.last_failure = found.detail
        elif found.cause is Cause.OVERLOADED:
            circuit.abandoned(send.ticket)  # nothing was sent: no news about the authority
        else:
            circuit.succeeded(send.ticket)
        if found.at_most is not None:
            return SplitBatch(found.at_most)
        if found.cause is Cause.RATE_LIMITED and found.retry_after is not None:
            until = now + min(found.retry_after, MAX_HOLD)
            # Another request may have announced a later time, so never move it back.
            self._gate.held_until = max(self._gate.held_until, until)
        if not found.again or self._attempts >= self._options.attempts:
            return self._settle(found)
        self._last = found
        return self._wait_or_settle(found, found.retry_after or 0.0, now)

    def _wait_or_settle(self, fault: TransportError, at_least: float, now: float) -> Step:
        """Return a wait of `at_least` seconds plus jitter, or Done if that is too late."""
        seconds = at_least + self._jitter()
        fault = replace(fault, retry_after=at_least or None)
        return self._settle(fault) if now + seconds >= self._deadline else Wait(seconds, fault)

    def _jitter(self) -> float:
        """Return a random wait in seconds, so that callers that failed together retry apart."""
        options = self._options
        doubled = options.backoff * 2.0 ** min(self._attempts, 30)
        return self._chance() * min(options.max_backoff, doubled)

    def _counted(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Indeterminate):
            return replace(outcome, attempts=self._attempts)
        return outcome

    def _settle(self, fault: TransportError) -> Done:
        outcome = Indeterminate(
            fault.cause,
            fault.detail,
            attempts=self._attempts,
            retry_after=fault.retry_after,
            request_id=self._request_id,
        )
        return Done([outcome] * self._count)
