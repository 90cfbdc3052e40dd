"""Measure CPU time and resident memory of a process and its descendants, from /proc (Linux only).

A process that ends while it is read is left out.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CALM_SECONDS = 0.1


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its descendants in seconds, ended ones included.

    PostgreSQL starts a process for each connection. The CPU time of an ended process is added to
    its parent's, so one connection per request is counted like a connection pool.
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
    """Wait until a process and its descendants are idle. Return False after `seconds`."""
    deadline = time.monotonic() + seconds
    before = cpu_seconds(root)
    while time.monotonic() < deadline:
        time.sleep(_CALM_SECONDS)
        after = cpu_seconds(root)
        # Little CPU time alone is no proof: on a busy machine a process may wait for a core.
        if after - before <= 2 / _TICKS and not _wants_to_run(root):
            return True
        before = after
    return False


def _wants_to_run(root: int) -> bool:
    """Return whether a thread of a process or its descendants runs or waits for a core.

    Both are state R in proc_pid_stat(5).
    """
    for pid in _tree(root):
        for place in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                text = place.read_text(encoding="utf-8", errors="replace")
                if text.rpartition(")")[2].split()[0] == "R":
                    return True
    return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name. The state is the first.

    The name may contain spaces and brackets, so the last bracket ends it.
    """
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
