"""Kill a command with SIGKILL just before its n-th operation on a file, or n-th SQL statement."""

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Engine, event

_WATCHED = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def die_before_step(folder: Path, last: int) -> None:
    """Kill this process and its forked children before one of them takes step `last`.

    A step is an operation on a file below the folder (see _WATCHED). A forked child continues its
    parent's count by itself. The process must be the leader of its group. An audit hook cannot be
    removed, so it stays until the process ends.
    """
    _at_each_step(folder, last, None)


def die_before_statement(number: int) -> None:
    """Kill this process before its n-th SQL statement or commit."""
    done = 0

    def step(*_: object) -> None:
        nonlocal done
        done += 1
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)


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
