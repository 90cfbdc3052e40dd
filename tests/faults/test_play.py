"""What is said of a fault that was played: the cells of the table, and what fails the run."""

import dataclasses

import pytest

from tests.faults import play
from tests.faults.catalog import FAULTS
from tests.faults.probes import Probed
from tests.high_availability.load import Heard
from tests.high_availability.report import Outcome

FAULT = FAULTS[0]
CLEAN = Outcome(FAULT.name, 1.0, 10, 0, 0, 0, 0)
READY = "ready stayed 200 while every write failed"
OK, UNREADY = Probed(2.0, 2.1, 200), Probed(2.0, 2.1, 503)
SERVED, REFUSED = Heard(3.0, 200, 0.1, None), Heard(3.0, 503, 0.1, 1)


@pytest.mark.parametrize(
    ("heard", "unready", "seconds", "expected"),
    [
        ([SERVED], [], 4.0, []),
        ([SERVED, REFUSED], [], 4.0, []),
        ([REFUSED], [], 4.0, [READY]),
        ([REFUSED], [UNREADY], 4.0, []),
        ([], [], 4.0, []),
        ([], [], 9.0, [READY]),
        ([], [UNREADY], 9.0, []),
    ],
)
def test_readiness_is_wrong_if_it_stays_while_nothing_is_recorded(
    heard: list[Heard], unready: list[Probed], seconds: float, expected: list[str]
) -> None:
    """A write that hangs is no failure before 7 seconds."""
    said = play.complaints(
        FAULT, CLEAN, lasted=(1.0, 1.0 + seconds), heard=heard, unready=unready, live=[OK]
    )
    assert [*said] == expected


def test_live_may_fail_only_if_the_process_does_not_run() -> None:
    down = dataclasses.replace(FAULT, ends_server=True)
    lasted = (1.0, 5.0)
    for fault, expected in ((FAULT, ["live failed"]), (down, [])):
        said = play.complaints(
            fault, CLEAN, lasted=lasted, heard=[SERVED], unready=[], live=[OK, UNREADY]
        )
        assert [*said] == expected


def test_a_loss_fails_the_run() -> None:
    for stock, expected in (
        (dataclasses.replace(CLEAN, lost=1), "1 lost, 0 doubled, 0 wrong"),
        (dataclasses.replace(CLEAN, doubled=2), "0 lost, 2 doubled, 0 wrong"),
        (dataclasses.replace(CLEAN, wrong=3), "0 lost, 0 doubled, 3 wrong"),
    ):
        said = play.complaints(
            FAULT, stock, lasted=(1.0, 5.0), heard=[SERVED], unready=[], live=[OK]
        )
        assert [*said] == [expected]


def test_what_clients_saw() -> None:
    heard = [
        Heard(1.0, 200, 0.1, None),
        Heard(2.0, 503, 0.2, 4),
        Heard(3.0, 503, 2.5, 1),
        Heard(4.0, 0, 0.0, None),
        Heard(5.0, 200, 0.1, None),
    ]
    assert play.describe_answers(heard) == (
        "200: 2, then 503: 2 (Retry-After 1 to 4 s), then no answer: 1; slowest 2.5 s"
    )


def test_what_live_said() -> None:
    assert play.describe_probes([Probed(1.0, 1.25, 200)]) == "200; slowest 250 ms"
    probes = [Probed(1.0, 1.001, 200), Probed(2.0, 2.002, 0)]
    assert play.describe_probes(probes) == "200: 1, no answer: 1; slowest 2 ms"
