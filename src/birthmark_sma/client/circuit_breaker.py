"""Circuit breaker: after several failures in a row, send nothing to the authority for a time. PURE.

    closed --(`failures` in a row)--> open --(`rest` seconds)--> half-open --success--> closed
                                       ^------------------failure-----'

`retry` calls it. Callers pass in the time, in seconds of a monotonic clock. In half-open, exactly
one request is sent, and its result decides. Results of requests that were sent before the last
change of state are ignored, because they no longer describe the authority.
"""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of the circuit."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitPermit:
    """Permission to send one request. Return it to the circuit with the result.

    `era` counts the changes of state, so that results from before the last change are recognised.
    """

    era: int


class Circuit:
    """The circuit for all requests of one client. Only the client's event loop may use it."""

    __slots__ = ("_era", "_failed", "_failures", "_opened_at", "_rest", "_state")

    def __init__(self, *, failures: int, rest: float) -> None:
        self._failures = failures
        self._rest = rest
        self._state = State.CLOSED
        self._failed = 0
        self._opened_at = 0.0
        self._era = 0

    @property
    def state(self) -> State:
        """Return the state. An open circuit becomes half-open in `admit`, and not by time alone."""
        return self._state

    def rest_left(self, now: float) -> float:
        """Return in how many seconds the next request may be sent; 0 if one may be sent now."""
        match self._state:
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return max(0.0, self._opened_at + self._rest - now)
            case State.HALF_OPEN:  # one request is in flight; its duration is unknown
                return self._rest

    def admit(self, now: float) -> CircuitPermit | None:
        """Return a permit to send a request, or None if none may be sent now."""
        if self._state is State.OPEN and self.rest_left(now) == 0:
            self._change(State.HALF_OPEN)
        elif self._state is not State.CLOSED:
            return None
        return CircuitPermit(self._era)

    def succeeded(self, ticket: CircuitPermit) -> None:
        """Record that the authority answered, whatever the answer was."""
        if ticket.era == self._era:
            self._failed = 0
            if self._state is State.HALF_OPEN:
                self._change(State.CLOSED)

    def failed(self, ticket: CircuitPermit, now: float) -> None:
        """Record that the authority did not answer or cannot answer."""
        if ticket.era != self._era:
            return
        self._failed += 1
        if self._state is State.HALF_OPEN or self._failed >= self._failures:
            self._opened_at = now
            self._change(State.OPEN)

    def abandoned(self, ticket: CircuitPermit) -> None:
        """Record that a request ended without a result. The next request may be the probe."""
        if ticket.era == self._era and self._state is State.HALF_OPEN:
            self._change(State.OPEN)  # `_opened_at` stays, so the next request may go at once

    def _change(self, state: State) -> None:
        self._state = state
        self._failed = 0
        self._era += 1
