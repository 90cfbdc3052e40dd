"""Pin a server process to one CPU core (setting `one_core`), except its signing threads.

The threads of a Python process take turns anyway, because of the interpreter's lock (GIL). If they
run on several cores, each turn wakes a core and moves shared data from one CPU cache to another.
This costs a busy server a fifth of its time (docs/performance.md). To use more cores, run more
processes (`--workers`). Threads that sign certificates release the lock while they sign, so they
may use all cores.
"""

import os
import sys

_allowed: set[int] = set()  # the cores that this process could use before it was pinned


def pin_to_core(number: int) -> None:
    """Pin the calling thread, and the threads that it starts later, to one of the allowed cores.

    Processes with consecutive numbers get different cores, as long as there are enough. Does
    nothing on systems other than Linux, or if the system refuses.
    """
    if sys.platform == "linux":
        _allowed.update(os.sched_getaffinity(0))
        _use({sorted(_allowed)[number % len(_allowed)]})


def unpin() -> None:
    """Let the calling thread use all cores again that the process was allowed at its start."""
    if _allowed:
        _use(_allowed)


def _use(cores: set[int]) -> None:
    if sys.platform == "linux":
        try:
            os.sched_setaffinity(0, cores)
        except OSError:  # some containers forbid it; this costs only speed
            return
