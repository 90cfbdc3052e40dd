"""A circuit breaker: after several failures in a row the authority is left in peace for a moment.

    closed --(`failures` in a row)--> open --(`rest` seconds)--> half-open --success--> closed
                                       ^------------------failure-----'

Pure: the time is passed in, in seconds of a clock that never goes back. In half-open exactly one
request goes out; what it brings decides. Results of requests that went out before the circuit last
changed are old news, and are ignored.
"""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What the circuit lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitPermit:
    """Leave to send one request; give it back with how that went."""

    era: int


class Circuit:
    """One circuit, for all requests of one client. Belongs to the client's event loop."""

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
        """Where it stands. An open circuit turns half-open when somebody asks in time."""
        return self._state

    def rest_left(self, now: float) -> float:
        """In how many seconds the next request may go out; 0 where one may now."""
        match self._state:
            case State.CLOSED:
                return 0.0
            case State.OPEN:
                return max(0.0, self._opened_at + self._rest - now)
            case State.HALF_OPEN:  # the one request is out; nobody knows for how long
                return self._rest

    def admit(self, now: float) -> CircuitPermit | None:
        """Return leave to send a request, or None where none may go out now."""
        if self._state is State.OPEN and self.rest_left(now) == 0:
            self._change(State.HALF_OPEN)
        elif self._state is not State.CLOSED:
            return None
        return CircuitPermit(self._era)

    def succeeded(self, ticket: CircuitPermit) -> None:
        """The authority answered: whatever it said, it is there."""
        if ticket.era == self._era:
            self._failed = 0
            if self._state is State.HALF_OPEN:
                self._change(State.CLOSED)

    def failed(self, ticket: CircuitPermit, now: float) -> None:
        """The authority did not answer, or cannot."""
        if ticket.era != self._era:
            return
        self._failed += 1
        if self._state is State.HALF_OPEN or self._failed >= self._failures:
            self._opened_at = now
            self._change(State.OPEN)

    def abandoned(self, ticket: CircuitPermit) -> None:
        """Nobody waited for the answer: it tells nothing, and the next request may try."""
        if ticket.era == self._era and self._state is State.HALF_OPEN:
            self._change(State.OPEN)  # since `_opened_at`, so that the next may go at once

    def _change(self, state: State) -> None:
        self._state = state
        self._failed = 0
        self._era += 1
