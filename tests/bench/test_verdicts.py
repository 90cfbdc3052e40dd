"""Each line of what must be shown, held against its floor and its aim."""

from bench.figures import Report
from bench.verdicts import TARGETS, Outcome
from tests.bench import canned


def outcomes(report: Report) -> dict[str, tuple[str, str]]:
    return {each.what: (each.value(report), each.outcome(report).value) for each in TARGETS}


def test_floors_and_aims_are_told_apart() -> None:
    found = list(outcomes(canned.report()).values())
    assert found[:7] == [
        ("100.0 x", "aim reached"),
        ("", "not measured"),
        ("0.50", "aim reached"),
        ("40.0 x", "missed"),
        ("200 x", "floor reached"),
        ("20.0 ms", "floor reached"),
        ("", "not measured"),
    ]
    assert ("0.90 s", "aim reached") in found, "the slower of the two starts counts"


def test_nothing_is_claimed_of_an_empty_run() -> None:
    report = Report({}, {})
    assert {each.outcome(report) for each in TARGETS} == {Outcome.NOT_MEASURED}


def test_every_aim_is_harder_than_its_floor() -> None:
    assert len(TARGETS) == 18
    assert all((each.aim < each.floor) == each.smaller for each in TARGETS)
