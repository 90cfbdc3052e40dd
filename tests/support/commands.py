"""Commands of `sma`, each in a process of its own that need not import everything again.

Importing is most of what a short command costs, and half of what a server's start does; the tests
need hundreds of both. So they are forked from a process that has imported everything once, and does
nothing else. What a command reads of its surroundings (arguments, environment, directory, standard
streams) is its own. Where memory or the command line is looked at, start `SMA` by itself.
"""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from tests.support.forking import FORKING

_SECONDS = 90


class Command:
    """A running command, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        cwd: Path | None = None,
        *,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
        stderr: IO[str],
    ) -> None:
        """Start it. Without `stdout` there is a pipe of that name to read what it says."""
        self.args = ["sma", *arguments]
        self.stdout: IO[str] | None = None
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            if stdout is None:
                reading, writing = os.pipe()
                self.stdout, stdout = os.fdopen(reading, encoding="utf-8"), os.fdopen(writing, "w")
            streams = (stdin or nothing, stdout, stderr)
            self._process = FORKING.Process(
                target=_run,
                args=(self.args, dict(environ), cwd or Path.cwd(), *map(_Handed, streams)),
            )
            self._process.start()
            if self.stdout is not None:
                stdout.close()
        _running.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        code = self._process.exitcode
        if code is not None:
            _running.discard(self)
        return code

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


_running: set[Command] = set()


@atexit.register
def _end_all() -> None:
    """End what a failed test has left: the library would wait for it for ever."""
    for command in list(_running):
        command.kill()


def sma(
    *arguments: str,
    environ: Mapping[str, str],
    stdin: str | None = None,
    cwd: Path | None = None,
    seconds: float = _SECONDS,
) -> "subprocess.CompletedProcess[str]":
    """Run a command of `sma` to its end."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as given,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as said,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as told,
    ):
        given.write(stdin or "")
        given.seek(0)
        command = Command(arguments, environ, cwd, stdin=given, stdout=said, stderr=told)
        try:
            code = command.wait(seconds)
        finally:
            command.kill()
        said.seek(0)
        told.seek(0)
        return subprocess.CompletedProcess(command.args, code, said.read(), told.read())


class _Handed:
    """A file that the process gets at its start."""

    def __init__(self, file: IO[str]) -> None:
        self._descriptor = file.fileno()

    def __reduce__(self) -> tuple[object, ...]:
        return _detached, (DupFd(self._descriptor),)


def _detached(handed: Any) -> int:
    descriptor: int = handed.detach()
    return descriptor


def _run(arguments: list[str], environ: Mapping[str, str], cwd: Path, *descriptors: int) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.argv = arguments
    from birthmark_sma.cli.main import run  # noqa: PLC0415 - the tests that pass by import nothing

    run()
