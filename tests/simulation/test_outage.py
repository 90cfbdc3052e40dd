"""A fleet whose authority is killed in the middle of the run, and started again."""

import json
import time
from pathlib import Path
from urllib.parse import urlsplit

from birthmark_sma.client import Cause
from birthmark_sma.simulation.cases import Case
from tests.support.commands import Command
from tests.support.running import start, wait_until

DURATION, SETTLE = 4, 25


def test_an_authority_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """Threats 19 and 30: what could not be asked is INDETERMINATE, and asked about again."""
    running = start(tmp_path / "data", "sqlite:", SMA_TABLES="10")
    port = str(urlsplit(running.server.url).port)
    with (tmp_path / "said").open("w+") as said, (tmp_path / "told").open("w+") as told:
        begun = time.monotonic()
        fleet = Command(
            [
                *("simulate", "fleet", running.server.url, "--cameras", "4", "--seed", "1"),
                *("--duration", str(DURATION), "--rate", "25", "--even"),
                *("--settle", str(SETTLE), "--report", "report.json"),
            ],
            running.environ,
            tmp_path,
            stdout=said,
            stderr=told,
        )
        try:
            wait_until(lambda: running.count("validation_history") > 20, 30)
            running.server.kill()
            time.sleep(1.0)  # pictures are taken, and nobody can be asked
            with start(tmp_path / "data", "sqlite:", "--port", port).server:
                code = fleet.wait(DURATION + 2 * SETTLE)
        finally:
            fleet.kill()
        said.seek(0)
        told.seek(0)
        printed, notes = said.read(), told.read()
    assert code == 0, notes + printed
    report = json.loads((tmp_path / "report.json").read_text())
    bundles, indeterminate = report["bundles"], report["indeterminate"]
    assert report["all_right"]
    assert report["seconds"] <= time.monotonic() - begun
    assert bundles["right"] == bundles["sent"] == 2 * report["pictures"]["planned"]
    assert bundles["wrong"] == bundles["lost"] == 0
    ended = {each["case"]: each["ended"] for each in report["cases"]}
    assert ended[Case.GENUINE].keys() == {"PASS"}
    assert indeterminate["times"] >= indeterminate["bundles"] > 0
    assert indeterminate["times"] == sum(indeterminate["causes"].values())
    assert all(Cause(each).passes for each in indeterminate["causes"])
    assert f"INDETERMINATE, which is no FAIL: {indeterminate['times']:,} times" in printed
    assert "all were asked about again, and none was lost" in printed
    # What was told stands in the audit trail; what was asked in vain may stand there as well.
    verdicts = sum(each[v] for each in ended.values() for v in ("PASS", "FAIL") if v in each)
    assert running.count("validation_history") >= verdicts + 3
