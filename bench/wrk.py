"""Closed load with wrk: so many connections, each with one request under way at all times."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("requests.lua")
_MARK = "RESULT "
_TIMEOUT_SECONDS = 30


class WrkMissingError(RuntimeError):
    """There is no wrk on this machine."""

    def __init__(self) -> None:
        super().__init__(
            "wrk is not installed, and it makes the load. Install it with `apt-get install wrk`,"
            " `dnf install wrk` or `brew install wrk`, or from https://github.com/wg/wrk."
        )


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk counted: `broken` connections failed, `refused` answers have a status from 400."""

    requests: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    broken: int
    refused: int


def find_wrk() -> str:
    """Return the path of wrk. Raises WrkMissingError."""
    path = shutil.which("wrk")
    if path is None:
        raise WrkMissingError
    return path


def load(url: str, bodies: Path, *, connections: int, seconds: float) -> WrkResult:
    """POST the bodies of a file, one a line, round and round, from one thread.

    wrk counts whole seconds. Raises RuntimeError where it ends with anything but a result.
    """
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    done = subprocess.run(
        [*command, f"--timeout={_TIMEOUT_SECONDS}s", "-s", str(_SCRIPT), url],
        env={**os.environ, "BODIES": str(bodies)},
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_result(done.stdout + done.stderr)


def parse_result(said: str) -> WrkResult:
    """Read the line that requests.lua prints at the end. Raises RuntimeError without one."""
    for line in said.splitlines():
        if line.startswith(_MARK):
            return WrkResult(**json.loads(line.removeprefix(_MARK)))
    raise RuntimeError(f"wrk printed no result: {said.strip()}")
