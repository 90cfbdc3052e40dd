"""Fork the workers of a forked server. Otherwise each of them would import everything again.

uvicorn spawns its workers, and the imports of each take 1.4 s of CPU time. A server that
`commands.py` forks calls `fork_workers`, and then its workers come from the same fork server as
itself. A server that is started as `SMA` still spawns its workers, as in production.
"""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import uvicorn._subprocess

from tests.support import derivation_cost
from tests.support.programs.fork_server import FORKING, Handed, take_over


class _ForkingContext:
    """The part of a multiprocessing context that uvicorn uses."""

    def Process(  # noqa: N802 - the name in multiprocessing
        self, *, target: Callable[..., None], kwargs: Mapping[str, Any]
    ) -> ForkServerProcess:
        """Return a worker that inherits from this process what a spawned one would inherit."""
        blocked = [*signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        surroundings = (dict(os.environ), Path.cwd(), *map(Handed, range(3)))
        return FORKING.Process(
            target=_run_worker, args=(os.getpid(), blocked, target, kwargs, *surroundings)
        )


def fork_workers() -> None:
    """Let uvicorn fork the workers of this process, which the fork server has forked."""
    # This process knows the address of the fork server, but would start another of its own.
    vars(forkserver._forkserver)["ensure_running"] = lambda: None
    vars(uvicorn._subprocess)["spawn"] = _ForkingContext()


def _run_worker(
    server: int,
    blocked: Sequence[int],
    target: Callable[..., None],
    kwargs: Mapping[str, Any],
    *surroundings: Any,
) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    take_over(*surroundings)
    derivation_cost.lower(derivation_cost.OF_AUTHORITIES)
    Path("/proc/self/comm").write_text(_name(server), encoding="ascii")
    target(**kwargs)


def _name(server: int) -> str:
    """Return the process name of a server's workers. Linux keeps 15 characters of it."""
    return f"worker {server}"


def find_workers(server: int) -> list[int]:
    """Return the running workers that a server with this process id has forked (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (place / "stat").read_text(encoding="ascii").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.partition("(")[2] == _name(server) and rest.split()[0] != "Z":
            found.append(int(place.name))
    return sorted(found)
