"""A camera that is killed before any line of its renewal, or loses power: it always comes back.

tests/end_to_end/cameras kills real processes. Here every line is tried: the disk is copied at that
moment, and the next camera starts from the copy.
"""

import itertools
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import pytest

import birthmark_sma.device as package
from birthmark_sma.device import Renewal
from tests.device.renewal.conftest import Cameras
from tests.support.cameras.renewing_authority import new_table_keys
from tests.support.programs.power_loss import Power
from tests.support.soak import times

pytestmark = pytest.mark.soak

_OURS = str(Path(package.__file__).parent)
STEP = 400 // times(25, 400)
"""Lines between two kills. `make soak` kills before every one."""
SUPERSEDE = Renewal(automatic=False, supersede=True)


class KilledError(BaseException):
    """Ends the camera's work as a SIGKILL would: nothing catches it."""


class Killer:
    """Copies the camera's disk before the n-th line of its code, and ends it."""

    def __init__(self, line: int, directory: Path, copy: Path) -> None:
        self.lines = 0
        self._line, self._directory, self._copy = line, directory, copy

    def __enter__(self) -> "Killer":
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, *_: Any) -> Any:
        return self._each if frame.f_code.co_filename.startswith(_OURS) else None

    def _each(self, _: FrameType, event: str, __: Any) -> Any:
        self.lines += event == "line"
        if event == "line" and self.lines == self._line:
            sys.settrace(None)
            shutil.copytree(self._directory, self._copy)
            raise KilledError
        return self._each


def assert_came_back(cameras: Cameras, directory: Path) -> None:
    """The camera starts from what is left, and ends with exactly one valid certificate."""
    authority = cameras.authority
    camera = cameras.start(directory, renewal=SUPERSEDE)
    cameras.judge(camera.capture(b"after the kill"))
    for _ in range(3):
        camera.renew_if_due()
        cameras.time.advance(minutes=2)
    cameras.judge(camera.capture(b"after the renewal"))
    assert authority.valid == [camera.certificate]
    kept = cameras.kept(directory)
    assert (kept.renewal, kept.predecessor) == (None, None)
    assert camera.certificate in {each.certificate for each in authority.known.values()}
    camera.close()


def test_before_any_line(cameras: Cameras, tmp_path: Path, due: Callable[[], None]) -> None:
    """Threats 8 and 30: one CSR, one new certificate, and no old one where none was wanted."""
    authority = cameras.authority
    line = random.SystemRandom().randrange(STEP)
    reached = True
    while reached:
        line += STEP
        authority.known.clear()
        authority.requests.clear()
        directory, copy = tmp_path / f"at {line}", tmp_path / f"left {line}"
        cameras.write(directory)
        authority.table_keys = new_table_keys()
        due()
        camera = cameras.start(directory, renewal=SUPERSEDE)
        with Killer(line, directory, copy) as killer:
            try:
                camera.renew_if_due()
                reached = False
            except KilledError:
                pass
        camera.close()
        if reached:
            assert_came_back(cameras, copy)
            # A kill after the renewal is followed by another one, because this window stays past.
            assert len({body["csr"] for body in authority.renewals}) <= 2
        shutil.rmtree(directory)
        shutil.rmtree(copy, ignore_errors=True)
    assert killer.lines > 300


@pytest.mark.parametrize("moment", range(7))
def test_power_cuts_at_each_request(
    cameras: Cameras, tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threats 8 and 30: what a repetition needs is on disk, and not only in the page cache.

    Before and after the authority answers each of the three requests, and at the end.
    """
    power = Power(monkeypatch)
    directory, left = tmp_path / "powered", tmp_path / "left"
    cameras.write(directory)
    now = cameras.time.now
    cameras.authority.window = now - timedelta(days=2), now - timedelta(days=1)
    moments = itertools.count()

    def cut() -> None:
        if next(moments) == moment:
            power.cut(directory, left)
            raise KilledError

    def around(_: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        cut()
        response = answer()
        cut()
        return response

    camera = cameras.start(directory, renewal=SUPERSEDE)
    cameras.authority.faults = [around, around, around]
    with suppress(KilledError):
        camera.renew_if_due()
        cut()
    assert left.exists()
    camera.close()
    power.close()
    cameras.authority.faults.clear()
    assert_came_back(cameras, left)
