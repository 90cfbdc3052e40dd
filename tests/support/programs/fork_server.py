"""Fork processes in milliseconds from a fork server that has imported everything already.

Python has one fork server for the whole program, and the last call of `set_forkserver_preload`
decides what it imports. So only this module may call it.
"""

import multiprocessing
import os
import pkgutil
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import birthmark_sma

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "alembic.command",  # this and the next are imported inside functions
        "rich.progress",
        "tests.support.derivation_cost",
        "tests.support.cameras.killed_camera",
        *(
            each.name
            for each in pkgutil.walk_packages(birthmark_sma.__path__, "birthmark_sma.")
            if not each.name.endswith("__main__")
        ),
    ]
)


class Handed:
    """A file descriptor that is passed to the new process when it is pickled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[object, ...]:
        return _detached, (DupFd(self._descriptor),)


def _detached(handed: Any) -> int:
    descriptor: int = handed.detach()
    return descriptor


def take_over(environ: Mapping[str, str], cwd: Path, *descriptors: int) -> None:
    """Replace environment, directory and standard streams of this process."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
