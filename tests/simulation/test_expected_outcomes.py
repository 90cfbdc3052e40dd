"""Which endings are right, whatever was agreed on."""

from itertools import product

import pytest

from birthmark_sma.simulation.expected_outcomes import (
    TAMPERING,
    WHAT,
    Case,
    Environment,
    Outcome,
    right_endings,
    undetectable_reason,
)

ALL = [Environment(*each) for each in product([True, False], repeat=3)]
OPEN = Environment(discloses_serials=True, answers_repeats=True, reports_to_authority=True)


@pytest.mark.parametrize("there", ALL, ids=str)
def test_every_case_has_an_ending_that_is_right_and_is_described(there: Environment) -> None:
    for case in Case:
        right = right_endings(case, there)
        assert right
        assert Outcome.UNDECIDED not in right, "an outage is never right (threat 19)"
        assert WHAT[case].endswith(".")


@pytest.mark.parametrize("there", ALL, ids=str)
def test_what_is_false_and_passes_is_told_as_unseen(there: Environment) -> None:
    """No report may be silent about something false that the protocol lets through."""
    for case in Case:
        passes = Outcome.PASS in right_endings(case, there)
        honest = case in {Case.GENUINE, Case.BEING_REPORTED}
        assert (undetectable_reason(case, there) is not None) == (passes and not honest), case


def test_tampering_never_passes() -> None:
    for there, case in product(ALL, TAMPERING):
        assert Outcome.PASS not in right_endings(case, there)


def test_what_depends_on_agreements() -> None:
    hidden = Environment(discloses_serials=False, answers_repeats=True, reports_to_authority=False)
    once = Environment(discloses_serials=True, answers_repeats=False, reports_to_authority=True)
    assert right_endings(Case.BORROWED_CAMERA_TOKEN, OPEN) == {Outcome.FAIL}
    assert right_endings(Case.BORROWED_CAMERA_TOKEN, hidden) == {Outcome.PASS}
    assert right_endings(Case.REUSED_CAMERA_TOKEN, OPEN) == {Outcome.PASS}
    assert right_endings(Case.REUSED_CAMERA_TOKEN, once) == {Outcome.ALREADY_SUBMITTED}
    assert right_endings(Case.REPORTED, OPEN) == {Outcome.FAIL}
    assert right_endings(Case.REPORTED, hidden) == {Outcome.REPORTED}
    assert right_endings(Case.BEING_REPORTED, OPEN) == {Outcome.PASS, Outcome.FAIL}
