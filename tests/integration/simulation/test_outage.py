"""A fleet whose authority is killed in the middle of the run, and comes back, or never does."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from birthmark_sma.client import Cause
from birthmark_sma.counts import counted
from birthmark_sma.simulation.expected_outcomes import Case
from tests.support.programs.commands import Command
from tests.support.programs.running import Running, start, wait_until

SPARE = 15.0  # for provisioning and starting, on a machine that has other things to do


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """An authority of this test's own, to be killed."""
    running = start(tmp_path / "data", "sqlite:", SMA_TABLES="10")
    with running.server:
        yield running


@contextmanager
def fleet_of(running: Running, folder: Path, *bounds: str) -> Iterator[Command]:
    """A fleet that has begun to take pictures. It writes `report.json`, and prints to `said`."""
    fleet = ("simulate", "fleet", running.server.url, "--cameras", "4", "--seed", "1", "--even")
    more = ("--rate", "25", "--report", "report.json", *bounds)
    with (folder / "said").open("w") as said, (folder / "told").open("w") as told:
        command = Command([*fleet, *more], running.environ, folder, stdout=said, stderr=told)
        try:
            wait_until(lambda: running.count("validation_history") > 10, 30)
            yield command
        finally:
            command.kill()


def report_in(folder: Path) -> dict[str, Any]:
    """What a fleet reported, of which the printed words say the same."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    indeterminate, printed = report["indeterminate"], (folder / "said").read_text()
    assert indeterminate["times"] >= indeterminate["bundles"] > 0
    assert indeterminate["times"] == sum(indeterminate["causes"].values())
    assert all(Cause(each).passes for each in indeterminate["causes"])
    times = counted(indeterminate["times"], "time")
    assert f"INDETERMINATE, which is no FAIL: {times} (" in printed
    lost = report["bundles"]["lost"]
    became = "all were asked about again, and none was lost"
    if lost:
        became = counted(lost, "was lost", "were lost")
    assert became in printed
    return report


def test_an_authority_that_is_killed_and_started_again(running: Running, tmp_path: Path) -> None:
    """Threats 19 and 30: what could not be asked is INDETERMINATE, and asked about again."""
    port = str(urlsplit(running.server.url).port)
    with fleet_of(running, tmp_path, "--duration", "8", "--settle", "25") as fleet:
        running.server.kill()
        # A call to the authority makes four attempts, with pauses of up to 1.4 s in all.
        time.sleep(3.0)
        with start(tmp_path / "data", "sqlite:", "--port", port).server:
            code = fleet.wait(8 + 2 * 25 + SPARE)
    report = report_in(tmp_path)
    bundles, cases = report["bundles"], report["cases"]
    assert code == 0
    assert report["all_right"]
    assert bundles["right"] == bundles["sent"] == 2 * report["pictures"]["planned"]
    assert bundles["wrong"] == bundles["lost"] == 0
    ended = {each["case"]: each["ended"] for each in cases}
    assert ended[Case.GENUINE].keys() == {"PASS"}
    # What was told stands in the audit trail; what was asked in vain may stand there as well.
    verdicts = sum(each[v] for each in ended.values() for v in ("PASS", "FAIL") if v in each)
    assert running.count("validation_history") >= verdicts + 3


def test_an_authority_that_never_comes_back(running: Running, tmp_path: Path) -> None:
    """Threat 19: the run ends in its bounds, and what is lost is lost, and no FAIL."""
    with fleet_of(running, tmp_path, "--duration", "2", "--settle", "1") as fleet:
        running.server.kill()
        assert fleet.wait(2 + 2 * 1 + SPARE) == 1
    report = report_in(tmp_path)
    assert report["seconds"] < 2 + 2 * 1 + 2
    assert not report["all_right"]
    assert report["bundles"]["wrong"] == 0
    assert report["bundles"]["lost"] > 0
    [genuine] = [each for each in report["cases"] if each["case"] == Case.GENUINE]
    assert genuine["ended"].keys() == {"PASS", "undecided"}
