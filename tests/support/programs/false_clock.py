"""Change the wall clock of programs while they run, with LD_PRELOAD (Linux only)."""

import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class FalseClock:
    """The wall clock of programs that are started with `environ`. Their timers stay right."""

    def __init__(self, folder: Path) -> None:
        library = folder / "false-clock.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE)], check=True
        )
        self._file = folder / "false-clock"
        self.environ = {"LD_PRELOAD": str(library), "FALSE_CLOCK": str(self._file)}
        self._file.write_bytes(struct.pack("=q", 0))

    def set(self, seconds: int) -> None:
        """Make the clock fast by `seconds`, or slow if the number is negative."""
        # Write into the same file, because the programs have it mapped into their memory.
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", seconds))
