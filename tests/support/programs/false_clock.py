"""A wall clock that programs believe, and that a test sets while they run (Linux)."""

import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class FalseClock:
    """The clock of programs that are started with `environ`. Their timers are true."""

    def __init__(self, folder: Path) -> None:
        library = folder / "false-clock.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE)], check=True
        )
        self._file = folder / "false-clock"
        self.environ = {"LD_PRELOAD": str(library), "FALSE_CLOCK": str(self._file)}
        self._file.write_bytes(struct.pack("=q", 0))

    def set(self, seconds: int) -> None:
        """Let the clock be so many seconds ahead, or behind where the number is negative."""
        with self._file.open("r+b") as file:  # the same file: programs have it in their memory
            file.write(struct.pack("=q", seconds))
