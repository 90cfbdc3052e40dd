"""Twelve years of a fleet under libfaketime: `world` says what happens and what "content" means.

`make test` lives them with 3 cameras, `make soak` with 50. The seed is printed. It repeats the
restarts and the steps, but not the exact moments of the kills.
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

pytestmark = pytest.mark.soak

CAMERAS = times(3, 50)
STEP_DAYS = 45
_SECONDS = times(500, 1_700)
_ROOT = Path(__file__).parents[3]
_ACTS = ["sma ca rotate", "sma ca rotate", "sma ca roll-root", "sma ca rotate"]
"""After three, six, eight and eleven years."""


def test_a_fleet_lives_for_twelve_years(tmp_path: Path) -> None:
    """Every picture passes, the doctor is content, and no camera is left behind."""
    seed = random.SystemRandom().randrange(2**32)
    tell(f"seed {seed}, {CAMERAS} cameras, steps of {STEP_DAYS} days")
    world = tmp_path / "world"
    world.mkdir()
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.end_to_end.years.world"),
            *(str(world), "sqlite:", str(CAMERAS), str(STEP_DAYS), str(seed)),
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
    assert [act.partition(": ")[2] for act in report["acts"]] == _ACTS
    assert set(report["pictures_by_issuer"]) >= {
        f"Simulated Mfg Intermediate CA{number}" for number in ("", " 2", " 3", " 4")
    }
    assert report["pictures"] == report["steps"] * CAMERAS
    # A certificate of two years is renewed before its end.
    assert report["fewest_renewals"] >= 12 / 2 - 1
    assert {event.split()[0] for event in report["restarts"]} == {"authority", "cameras"}
