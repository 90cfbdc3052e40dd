"""When to send, wait and give up: every rule under a clock and a chance of the test's own."""

from collections.abc import Callable

import pytest

from birthmark_sma.client.circuit_breaker import State
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Cause, Indeterminate
from birthmark_sma.client.responses import TransportError
from birthmark_sma.client.retry import (
    MAX_HOLD,
    ConcurrencyState,
    Done,
    RetryState,
    Send,
    SplitBatch,
    Step,
    Wait,
)
from birthmark_sma.errors import ConfigurationError

OPTIONS = Options(attempts=4, backoff=1, max_backoff=4, circuit_failures=100)
LOST = TransportError(Cause.UNREACHABLE, "Lost.", again=True)
BUSY = TransportError(Cause.UNAVAILABLE, "Busy.", again=True, retry_after=7)
LIMITED = TransportError(Cause.RATE_LIMITED, "Limited.", again=True, retry_after=7)
REFUSED = TransportError(Cause.NOT_ALLOWED, "Refused.")


def retry_state(
    *,
    deadline: float = 100,
    gate: ConcurrencyState | None = None,
    options: Options = OPTIONS,
    chance: Callable[[], float] = lambda: 1.0,
    count: int = 1,
) -> RetryState:
    """An exchange that begins at 0."""
    return RetryState(
        count,
        deadline=deadline,
        options=options,
        gate=gate or ConcurrencyState.of(options),
        chance=chance,
    )


def sent(step: Step) -> Send:
    assert isinstance(step, Send), step
    return step


def why(step: Step) -> Indeterminate:
    """The one outcome that there is, which must be none."""
    assert isinstance(step, Done), step
    [outcome] = step.outcomes
    assert isinstance(outcome, Indeterminate)
    return outcome


def hear(asked: RetryState, step: Step, fault: TransportError, now: float) -> Step:
    return asked.on_result(sent(step), fault, now, request_id="id")


def test_waits_double_up_to_their_bound_and_attempts_end() -> None:
    asked, now, waits = retry_state(), 0.0, []
    step = asked.begin(now)
    for _ in range(3):
        step = hear(asked, step, LOST, now)
        assert isinstance(step, Wait)
        waits.append(step.seconds)
        now += step.seconds
        step = asked.begin(now)
    assert waits == [2, 4, 4]
    outcome = why(hear(asked, step, LOST, now))
    assert (outcome.cause, outcome.attempts, outcome.request_id) == (Cause.UNREACHABLE, 4, "id")


def test_the_jitter_is_full() -> None:
    """From nothing to the bound: those that failed together must not come back together."""
    for chance, seconds in ((0.0, 0.0), (0.25, 0.5), (1.0, 2.0)):
        asked = retry_state(chance=lambda chance=chance: chance)  # type: ignore[misc]
        assert hear(asked, asked.begin(0), LOST, 0) == Wait(seconds, LOST)


def test_what_asking_again_cannot_mend_is_asked_once() -> None:
    asked = retry_state()
    assert why(hear(asked, asked.begin(0), REFUSED, 1)).attempts == 1


def test_retry_after_is_the_least_wait() -> None:
    asked = retry_state(chance=lambda: 0.5)
    assert hear(asked, asked.begin(0), BUSY, 0) == Wait(7 + 1, BUSY)


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    asked = retry_state(deadline=7)
    outcome = why(hear(asked, asked.begin(0), BUSY, 0))
    assert (outcome.cause, outcome.retry_after) == (Cause.UNAVAILABLE, 7)


def test_an_attempt_gets_the_time_that_is_left() -> None:
    asked = retry_state(deadline=10)
    assert sent(asked.begin(4)).seconds == 6
    assert why(retry_state(deadline=10).begin(10)).cause is Cause.TIMED_OUT


def test_a_429_holds_back_all() -> None:
    """The limit is the caller's, over all connections."""
    gate = ConcurrencyState.of(OPTIONS)
    first, second, hasty = (
        retry_state(gate=gate),
        retry_state(gate=gate),
        retry_state(gate=gate, deadline=3),
    )
    hear(first, first.begin(0), LIMITED, 0)
    step = second.begin(1)
    assert isinstance(step, Wait)
    assert step.seconds >= 6
    outcome = why(hasty.begin(1))
    assert (outcome.cause, outcome.retry_after, outcome.attempts) == (Cause.RATE_LIMITED, 6, 0)
    sent(second.begin(7))


def test_no_429_holds_back_for_ever() -> None:
    """A Retry-After of a year is looked into after a minute."""
    gate = ConcurrencyState.of(OPTIONS)
    asked = retry_state(gate=gate)
    year = TransportError(Cause.RATE_LIMITED, "Limited.", again=True, retry_after=31_536_000.0)
    assert why(hear(asked, asked.begin(0), year, 0)).retry_after == 31_536_000
    sent(retry_state(gate=gate).begin(MAX_HOLD))


def test_an_open_circuit_sends_nothing() -> None:
    options = Options(circuit_failures=1, circuit_rest=5)
    gate = ConcurrencyState.of(options)
    asked = retry_state(gate=gate, options=options)
    hear(asked, asked.begin(0), TransportError(Cause.TIMED_OUT, "Late."), 0)
    outcome = why(retry_state(gate=gate, options=options).begin(1))
    assert (outcome.cause, outcome.retry_after, outcome.attempts) == (Cause.CIRCUIT_OPEN, 4, 0)
    sent(retry_state(gate=gate, options=options).begin(5))


@pytest.mark.parametrize("cause", Cause)
def test_only_an_ailing_authority_opens_the_circuit(cause: Cause) -> None:
    """A wrong key or a rate limit says that the authority is there and well."""
    ails = {
        Cause.UNREACHABLE,
        Cause.TIMED_OUT,
        Cause.UNTRUSTED,
        Cause.UNAVAILABLE,
        Cause.NOT_UNDERSTOOD,
    }
    options = Options(circuit_failures=1)
    gate = ConcurrencyState.of(options)
    asked = retry_state(gate=gate, options=options)
    hear(asked, asked.begin(0), TransportError(cause, "So."), 0)
    assert (gate.circuit.admit(0) is None) is (cause in ails)


def test_what_never_went_out_tells_nothing_of_the_authority() -> None:
    """Where no connection became free, the circuit is none the wiser: open it stays, or closed."""
    options = Options(circuit_failures=2, circuit_rest=5)
    gate = ConcurrencyState.of(options)
    late, stuck = (
        TransportError(Cause.TIMED_OUT, "Late."),
        TransportError(Cause.OVERLOADED, "Stuck."),
    )
    for fault in (late, stuck, late):  # two failures in a row, for the one between is none
        asked = retry_state(gate=gate, options=options)
        hear(asked, asked.begin(0), fault, 0)
    outcome = why(retry_state(gate=gate, options=options).begin(1))
    assert outcome.cause is Cause.CIRCUIT_OPEN
    assert outcome.detail.endswith("Late.")
    asked = retry_state(gate=gate, options=options)
    hear(asked, asked.begin(5), stuck, 5)  # the one request of a half-open circuit
    assert gate.circuit.state is State.OPEN


def test_too_many_at_once_are_split() -> None:
    asked = retry_state(count=10)
    fault = TransportError(Cause.RATE_LIMITED, "Limited.", again=True, retry_after=7, at_most=4)
    assert hear(asked, asked.begin(0), fault, 0) == SplitBatch(4)


@pytest.mark.parametrize(
    "bad",
    [
        {"deadline": 0},
        {"deadline": float("nan")},
        {"read_timeout": float("inf")},
        {"backoff": -1},
        {"attempts": 0},
        {"max_batch": 1_001},
        {"max_in_flight": 0},
        {"circuit_failures": 0},
    ],
)
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Options(**bad)  # type: ignore[arg-type]
