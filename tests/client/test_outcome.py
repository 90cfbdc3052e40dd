"""The three outcomes cannot be taken for booleans, nor for texts."""

from datetime import UTC, datetime

import pytest

from birthmark_sma.client import Cause, Fail, Indeterminate, Outcome, Pass

THEN = datetime(2026, 1, 31, tzinfo=UTC)
OUTCOMES: list[Outcome] = [
    Pass("SimulatedMfg", THEN),
    Fail("SimulatedMfg", THEN),
    Indeterminate(Cause.TIMED_OUT, "There was no answer in time."),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_no_outcome_is_a_boolean(outcome: Outcome) -> None:
    """Threat 19: `if not outcome` would take an outage for a FAIL, so it cannot be written."""
    with pytest.raises(TypeError, match="cannot be used as a boolean"):
        bool(outcome)
    with pytest.raises(TypeError):
        _ = "rejected" if not outcome else "accepted"
    with pytest.raises(TypeError):
        all([outcome])


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("other", ["PASS", "FAIL", True, False])
def test_no_outcome_is_compared_with_a_word(outcome: Outcome, other: object) -> None:
    """`outcome != "FAIL"` would be true of every FAIL."""
    with pytest.raises(TypeError):
        _ = outcome == other
    with pytest.raises(TypeError):
        _ = outcome != other


def test_outcomes_are_values() -> None:
    """Equal where all they say is equal, and good for sets."""
    assert Pass("A", THEN) == Pass("A", THEN)
    assert Pass("A", THEN) != Pass("B", THEN)
    assert Pass("A", THEN) != Fail("A", THEN)
    assert len({*OUTCOMES, Pass("SimulatedMfg", THEN)}) == 3
    assert [str(each) for each in OUTCOMES] == ["PASS", "FAIL", "INDETERMINATE"]


def test_match_tells_them_apart() -> None:
    """As the guide does it."""
    told = []
    for outcome in OUTCOMES:
        match outcome:
            case Pass():
                told.append("accept")
            case Fail():
                told.append("reject")
            case Indeterminate(cause=cause):
                told.append(f"keep: {cause}")
    assert told == ["accept", "reject", "keep: timed_out"]


def test_what_passes_by_itself() -> None:
    """Asking again helps with an outage, not with a wrong key."""
    assert Cause.RATE_LIMITED.passes
    assert Cause.UNREACHABLE.passes
    assert not Cause.NOT_ALLOWED.passes
    assert not Cause.ALREADY_SUBMITTED.passes
    assert not Cause.UNTRUSTED.passes
