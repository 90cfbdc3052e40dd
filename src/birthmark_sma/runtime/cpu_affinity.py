"""Keep a process on one core, where the machine allows it, but for threads that work alone.

The threads of a Python process take turns anyway. Each turn on another core wakes that core and
moves what both threads touch from one cache to the other, which costs a busy server a fifth of its
time. Who has more cores runs more processes (`--workers`). Threads that sign certificates take no
turns while they sign, so they use every core there is.
"""

import os
import sys

_allowed: set[int] = set()  # the cores that this process had before it was kept to one


def pin_to_core(number: int) -> None:
    """Keep the calling thread, and the threads that it will start, on one of the cores allowed.

    Processes with consecutive numbers get different ones, as far as there are. Elsewhere than on
    Linux, and where the system refuses, nothing changes.
    """
    if sys.platform == "linux":
        _allowed.update(os.sched_getaffinity(0))
        _use({sorted(_allowed)[number % len(_allowed)]})


def unpin() -> None:
    """Let the calling thread use all cores again that the process had at first."""
    if _allowed:
        _use(_allowed)


def _use(cores: set[int]) -> None:
    if sys.platform == "linux":
        try:
            os.sched_setaffinity(0, cores)
        except OSError:  # a sandbox that forbids it: slower, and as right
            return
