"""Twelve years of a fleet under libfaketime: `world` says what happens and what "content" means.

`make soak` lives them with 50 cameras, `make test` the first two with 3. The seed is printed. It
repeats the restarts and the steps, but not the exact moments of the kills.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs.faketime import FakeClock
from tests.support.soak import tell, times

# On a machine that is busy with other tests it takes ten times as long as on a quiet one.
_SECONDS = times(1_700, 7_000)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(_SECONDS + 100)]

CAMERAS = times(3, 50)
YEARS = times(2, 12)
STEP_DAYS = 45
_ROOT = Path(__file__).parents[3]
_ACTS = {3: "sma ca rotate", 6: "sma ca rotate", 8: "sma ca roll-root", 11: "sma ca rotate"}
"""The operator's commands, by the year after whose end the doctor names them."""
_INTERMEDIATES = times(1, 4)
"""The intermediates that are active for longer than any camera waits for its next renewal."""


def test_a_fleet_lives_for_years(tmp_path: Path) -> None:
    """Every picture passes, the doctor is content, and no camera is left behind."""
    seed = random.SystemRandom().randrange(2**32)
    tell(f"seed {seed}, {CAMERAS} cameras, {YEARS} years, steps of {STEP_DAYS} days")
    world = tmp_path / "world"
    world.mkdir()
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.end_to_end.years.world"),
            *(str(world), "sqlite:", *map(str, (CAMERAS, YEARS, STEP_DAYS, seed))),
        ],
        cwd=_ROOT,
        env=os.environ | FakeClock(tmp_path / "clock").environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    tell(ran.stdout)
    report = json.loads(ran.stdout)
    acts = [act.partition(": ")[2] for act in report["acts"]]
    assert acts == [act for year, act in _ACTS.items() if year < YEARS]
    numbers = ["", *(f" {number}" for number in range(2, _INTERMEDIATES + 1))]
    expected = {f"Simulated Mfg Intermediate CA{number}" for number in numbers}
    assert expected <= set(report["pictures_by_issuer"])
    assert report["pictures"] == report["captured"] >= report["steps"] * CAMERAS
    # A certificate of two years is renewed before its end.
    assert report["fewest_renewals"] >= YEARS // 2
    assert {event.split()[0] for event in report["restarts"]} == {"authority", "cameras"}
