"""The circuit breaker under a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.client.circuit_breaker import Circuit, CircuitPermit, State


def admitted(circuit: Circuit, now: float) -> CircuitPermit:
    """Leave to send, which must be given."""
    ticket = circuit.admit(now)
    assert ticket is not None
    return ticket


def state_of(circuit: Circuit) -> State:
    """Where it stands now, which a type checker must not conclude from before."""
    return circuit.state


def opened(failures: int = 3, rest: float = 10, at: float = 100) -> Circuit:
    """A circuit that has just opened."""
    circuit = Circuit(failures=failures, rest=rest)
    for _ in range(failures):
        circuit.failed(admitted(circuit, at), at)
    assert state_of(circuit) is State.OPEN
    return circuit


def test_it_opens_after_failures_in_a_row() -> None:
    circuit = Circuit(failures=3, rest=10)
    for failed in (True, True, False, True, True):
        ticket = admitted(circuit, 0)
        circuit.failed(ticket, 0) if failed else circuit.succeeded(ticket)
    assert state_of(circuit) is State.CLOSED
    circuit.failed(admitted(circuit, 0), 0)
    assert state_of(circuit) is State.OPEN


def test_it_rests_to_the_second() -> None:
    circuit = opened(rest=10, at=100)
    assert circuit.admit(100) is None
    assert circuit.admit(109.99) is None
    assert circuit.rest_left(104) == 6
    assert circuit.admit(110) is not None
    assert state_of(circuit) is State.HALF_OPEN


def test_half_open_lets_one_out() -> None:
    circuit = opened()
    admitted(circuit, 110)
    assert circuit.admit(110) is None
    assert circuit.admit(1_000) is None


def test_the_one_decides() -> None:
    closes, opens = opened(), opened()
    closes.succeeded(admitted(closes, 110))
    assert state_of(closes) is State.CLOSED
    opens.failed(admitted(opens, 110), 111)
    assert state_of(opens) is State.OPEN
    assert opens.admit(120.9) is None
    assert opens.admit(121) is not None


def test_closed_again_it_takes_as_many_failures_as_before() -> None:
    circuit = opened(failures=3)
    circuit.succeeded(admitted(circuit, 110))
    circuit.failed(admitted(circuit, 110), 110)
    circuit.failed(admitted(circuit, 110), 110)
    assert state_of(circuit) is State.CLOSED


def test_old_news_is_no_news() -> None:
    """What went out before the circuit opened neither closes it nor opens it again."""
    circuit = Circuit(failures=1, rest=10)
    early, late = admitted(circuit, 0), admitted(circuit, 0)
    circuit.failed(late, 100)
    circuit.succeeded(early)
    assert state_of(circuit) is State.OPEN
    probe = admitted(circuit, 110)
    circuit.failed(early, 110)
    circuit.succeeded(early)
    assert state_of(circuit) is State.HALF_OPEN
    circuit.succeeded(probe)
    assert state_of(circuit) is State.CLOSED


def test_one_that_nobody_waits_for_leaves_its_place() -> None:
    """A caller that is cancelled in half-open must not shut the circuit for ever."""
    circuit = opened()
    circuit.abandoned(admitted(circuit, 110))
    circuit.succeeded(admitted(circuit, 110))
    assert state_of(circuit) is State.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "gone", "late"]), st.floats(0, 20))))
def test_it_is_never_stuck(steps: list[tuple[str, float]]) -> None:
    """Whatever happens, once all is told and the rest is over a request may go out."""
    circuit, now, out = Circuit(failures=2, rest=10), 0.0, []
    for what, passed in steps:
        now += passed
        if (ticket := circuit.admit(now)) is not None:
            out.append(ticket)
        if what == "late" or not out:
            continue
        ticket = out.pop(0)
        match what:
            case "ok":
                circuit.succeeded(ticket)
            case "bad":
                circuit.failed(ticket, now)
            case _:
                circuit.abandoned(ticket)
    for ticket in out:
        circuit.failed(ticket, now)
    assert circuit.admit(now + 10) is not None
