"""Kill a command or a server with SIGKILL just before its n-th step, in files or the database."""

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

_WATCHED = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def die_before_step(folder: Path, last: int) -> None:
    """Kill this process and its forked children before one of them takes step `last`.

    A step is an operation on a file below the folder (see _WATCHED). A forked child continues its
    parent's count by itself. The process must be the leader of its group. An audit hook cannot be
    removed, so it stays until the process ends.
    """
    _at_each_step(folder, last, None)


def count_steps(folder: Path, marks: Path) -> None:
    """Write a byte to the file `marks` for every step below the folder."""
    _at_each_step(folder, 0, os.open(marks, os.O_WRONLY | os.O_CREAT))


def _at_each_step(folder: Path, last: int, marks: int | None) -> None:
    beginning, steps = str(folder), 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal steps
        if event in _WATCHED and any(_begins(each, beginning) for each in arguments):
            steps += 1
            if steps == last:
                assert os.getpgrp() in {os.getpid(), os.getppid()}
                os.killpg(0, signal.SIGKILL)
            if marks is not None:
                os.write(marks, b".")

    sys.addaudithook(watch)


def _begins(argument: object, beginning: str) -> bool:
    path = os.fspath(argument) if isinstance(argument, os.PathLike) else argument
    return isinstance(path, str) and path.startswith(beginning)


def die_before_statement(last: int, armed: Path | None = None) -> None:
    """Kill this process before its step `last` in the database: a statement, a commit, or its end.

    With `armed`, steps count from the moment at which this file exists.
    """
    _at_each_statement(last, armed, None)


def count_statements(marks: Path, armed: Path | None = None) -> None:
    """Write a byte to the file `marks` for every step in the database."""
    _at_each_statement(0, armed, os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))


def _at_each_statement(last: int, armed: Path | None, marks: int | None) -> None:
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        if armed is not None and not armed.exists():
            return
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if marks is not None:
            os.write(marks, b".")

    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)  # before it
    event.listen(Pool, "checkin", step)  # a transaction has ended, and nobody has been told
