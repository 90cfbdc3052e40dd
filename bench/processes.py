"""What processes cost: CPU seconds and resident memory of a process and all below it, on Linux."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CALM_SECONDS = 0.1


def cpu_seconds(root: int) -> float:
    """Return the CPU time that a process and its descendants have used, the ended ones included.

    A database's server process that ended is in its parent's account: a connection a request is
    paid for like any other.
    """
    ticks = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError):
            # user, system, and both again for children that were waited for: proc_pid_stat(5)
            ticks += sum(int(each) for each in _stat(pid)[11:15])
    return ticks / _TICKS


def resident_mb(root: int) -> float:
    """Return the resident memory of a process and its descendants, in millions of bytes."""
    pages = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * _PAGE / 1e6


def wait_until_calm(root: int, seconds: float) -> bool:
    """Wait until a process has finished what it was asked; False where it went on for too long."""
    deadline = time.monotonic() + seconds
    before = cpu_seconds(root)
    while time.monotonic() < deadline:
        time.sleep(_CALM_SECONDS)
        after = cpu_seconds(root)
        # A process that waits for a turn on a busy machine uses little time as well.
        if after - before <= 2 / _TICKS and not _wants_to_run(root):
            return True
        before = after
    return False


def _wants_to_run(root: int) -> bool:
    """Say whether a thread of a process or its descendants runs, or waits for a processor."""
    for pid in _tree(root):
        for place in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                text = place.read_text(encoding="utf-8", errors="replace")
                if text.rpartition(")")[2].split()[0] == "R":
                    return True
    return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: the state is the first."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(place.name)
            children.setdefault(int(_stat(pid)[1]), []).append(pid)
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting.extend(children.get(pid, ()))
