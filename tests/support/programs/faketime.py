"""Run programs under libfaketime: one wall clock for all of them, which a test moves forward.

`make setup-clock` unpacks Debian's library into .cache. Monotonic clocks stay right, so timeouts
and timers are those of a machine whose clock was set.
"""

import os
import subprocess
import sysconfig
from datetime import timedelta
from pathlib import Path

_UNPACKED = Path(__file__).parents[3] / ".cache" / "clock"
_SLEEP = Path(__file__).with_name("right_sleep.c")
# Of the library for programs with threads.
_NAME = "faketime/libfaketimeMT.so.1"


def find_library() -> Path:
    """Return the path of libfaketime. Fails with the command that gets it."""
    architecture = sysconfig.get_config_var("MULTIARCH") or ""
    for root in (Path("/"), _UNPACKED):
        for folder in (f"usr/lib/{architecture}", "usr/lib", "usr/lib64"):
            if (root / folder / _NAME).exists():
                return root / folder / _NAME
    raise AssertionError("libfaketime is missing. Type: make setup-clock")


class FakeClock:
    """The wall clock of the programs that are started with `environ`."""

    def __init__(self, file: Path) -> None:
        """Use the clock in a file, which is created with the right time if it is missing.

        The folder must exist. A library is compiled beside the file.
        """
        self._file = file
        self.ahead = timedelta(0)
        if file.exists():
            self.ahead = timedelta(seconds=int(file.read_text("ascii")))
        else:
            self._write()

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables of a program that has this clock."""
        sleep = self._file.with_name("right-sleep.so")
        if not sleep.exists():
            subprocess.run(
                ["cc", "-shared", "-fPIC", "-O1", "-o", str(sleep), str(_SLEEP)], check=True
            )
        return {
            "LD_PRELOAD": f"{sleep}:{find_library()}",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def advance(self, by: timedelta) -> None:
        """Move the clock forward by whole seconds, in all programs at once."""
        self.ahead += by
        self._write()

    def _write(self) -> None:
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text(f"+{int(self.ahead.total_seconds())}\n", "ascii")
        os.replace(unfinished, self._file)  # noqa: PTH105  programs read it at any moment
