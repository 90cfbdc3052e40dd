"""Kill a command or a server with SIGKILL just before its n-th step, in files or the database."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

_THREADS = ("signer", "provisioning-writer")
"""The beginnings of the names of the threads that provision and renew."""
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


def die_before_statement(last: int, victim: int | None = None) -> None:
    """Kill this process, or the process `victim`, before step `last` of this one in the database.

    A step is a statement, a commit, or the end of a transaction of which nobody has been told.
    """
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(victim or os.getpid(), signal.SIGKILL)

    _at_each_statement(step)


def count_statements(marks: Path) -> None:
    """Write a byte to the file `marks` for every step in the database."""
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _at_each_statement(lambda: os.write(descriptor, b"."))


def die_when_told(orders: Path) -> None:
    """Kill this server before a step in the database, once the file `orders` exists.

    The file has the number of the step, counted from then on; 0 means never. The steps are counted
    in the size of the file `orders.steps`. Only the steps of provisioning and renewal count: the
    number of those of background tasks depends on the time that a camera takes.
    """

    def step() -> None:
        if not threading.current_thread().name.startswith(_THREADS) or not orders.exists():
            return
        with orders.with_suffix(".steps").open("ab", buffering=0) as counted:
            counted.write(b".")
            if counted.tell() == int(orders.read_text()):
                os.kill(os.getpid(), signal.SIGKILL)

    _at_each_statement(step)


def _at_each_statement(step: Callable[[], object]) -> None:
    def listen(*_: object) -> None:
        step()

    event.listen(Engine, "before_cursor_execute", listen)
    event.listen(Engine, "commit", listen)  # before it
    event.listen(Pool, "checkin", listen)
