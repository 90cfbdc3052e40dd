"""Keep a process on one core, where the machine allows it.

The threads of a Python process take turns anyway. Each turn on another core wakes that core and
moves what both threads touch from one cache to the other, which costs a busy server a third of its
time. Who has more cores runs more processes (`--workers`).
"""

import os
import sys


def keep_to_one_core(number: int) -> None:
    """Keep the calling thread, and the threads that it will start, on one of the cores allowed.

    Processes with consecutive numbers get different ones, as far as there are. Elsewhere than on
    Linux, and where the system refuses, nothing changes.
    """
    if sys.platform == "linux":
        allowed = sorted(os.sched_getaffinity(0))
        try:
            os.sched_setaffinity(0, {allowed[number % len(allowed)]})
        except OSError:
            return
