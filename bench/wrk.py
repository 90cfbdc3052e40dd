"""Closed load with wrk: each connection always has one request under way.

`bench.closed` and `bench.profiling` call `load`. `requests.lua` sends the bodies and prints the
result.
"""

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
    """wrk is not installed on this machine."""

    def __init__(self) -> None:
        super().__init__(
            "wrk is not installed, and it makes the load. Install it with `apt-get install wrk`,"
            " `dnf install wrk` or `brew install wrk`, or from https://github.com/wg/wrk."
        )


@dataclass(frozen=True, slots=True)
class WrkResult:
    """The counts of wrk. `broken` connections failed; `refused` responses have a status >= 400."""

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
    """POST the bodies of a file, one on each line, again and again, from one thread.

    `seconds` is rounded to at least 1, because wrk takes whole seconds. Raises RuntimeError if wrk
    prints no result, and WrkMissingError.
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
    """Return the result that requests.lua prints. Raises RuntimeError if there is none."""
    for line in said.splitlines():
        if line.startswith(_MARK):
            return WrkResult(**json.loads(line.removeprefix(_MARK)))
    raise RuntimeError(f"wrk printed no result: {said.strip()}")
