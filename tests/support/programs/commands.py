"""Commands of `sma`, each in a process of its own that need not import everything again.

Importing is most of what a short command costs, and half of what a server's start does; the tests
need hundreds of both. So they are forked from a process that has imported everything once, and does
nothing else. What a command reads of its surroundings (arguments, environment, directory, standard
streams) is its own. Where memory or the command line is looked at, start `SMA` by itself.

Their key derivations cost little: see `tests/support/derivation_cost.py`.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from birthmark_sma.authority.kek import rotation
from tests.support import derivation_cost
from tests.support.programs.fork_server import FORKING

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
        before: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Start it. Without `stdout` there is a pipe of that name to read what it says.

        Its process calls what is to be done `before`, in turn.
        """
        self.args = ["sma", *arguments]
        self.stdout: IO[str] | None = None
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            if stdout is None:
                reading, writing = os.pipe()
                self.stdout, stdout = os.fdopen(reading, encoding="utf-8"), os.fdopen(writing, "w")
            streams = (stdin or nothing, stdout, stderr)
            self._process = FORKING.Process(
                target=_run,
                args=(self.args, dict(environ), cwd or Path.cwd(), before, *map(_Handed, streams)),
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


class Background(Command):
    """A command that runs beside the test, as the leader of a process group.

    `stdin` is a pipe to it where it `reads`; what it says is kept, to be read at its end.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str],
        cwd: Path | None = None,
        reads: bool = False,
        before: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._said, self._told = _new_file(), _new_file()
        self.stdin: IO[str] | None = None
        given: IO[str] | None = None
        if reads:
            reading, writing = os.pipe()
            given, self.stdin = os.fdopen(reading), os.fdopen(writing, "w", encoding="utf-8")
        super().__init__(
            arguments,
            environ,
            cwd,
            stdin=given,
            stdout=self._said,
            stderr=self._told,
            before=(os.setsid, *before),
        )
        if given is not None:
            given.close()

    def communicate(self, text: str = "", timeout: float = _SECONDS) -> tuple[str, str]:
        """Give it the rest of its input, wait for its end, and return what it said and told."""
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(text)
        self.wait(timeout)
        texts = []
        for file in (self._said, self._told):
            with file:
                file.seek(0)
                texts.append(file.read())
        return texts[0], texts[1]


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
    before: Sequence[Callable[[], object]] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a command of `sma` to its end. Its process calls what is to be done `before`."""
    with _new_file() as given, _new_file() as said, _new_file() as told:
        given.write(stdin or "")
        given.seek(0)
        command = Command(
            arguments, environ, cwd, stdin=given, stdout=said, stderr=told, before=before
        )
        try:
            code = command.wait(seconds)
        finally:
            command.kill()
        said.seek(0)
        told.seek(0)
        return subprocess.CompletedProcess(command.args, code, said.read(), told.read())


def expect_no_server() -> None:
    """Do not let a rotation wait for servers: for authorities on which none runs."""
    vars(rotation)["FOLLOWING_SECONDS"] = 0.0


def _new_file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", newline="")


class _Handed:
    """A file that the process gets at its start."""

    def __init__(self, file: IO[str]) -> None:
        self._descriptor = file.fileno()

    def __reduce__(self) -> tuple[object, ...]:
        return _detached, (DupFd(self._descriptor),)


def _detached(handed: Any) -> int:
    descriptor: int = handed.detach()
    return descriptor


def _run(
    arguments: list[str],
    environ: Mapping[str, str],
    cwd: Path,
    before: Sequence[Callable[[], object]],
    *descriptors: int,
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.argv = arguments
    derivation_cost.lower(derivation_cost.OF_AUTHORITIES)
    # What the command spawns runs the main module again, and so lowers the cost for itself.
    sys.modules["__main__"] = derivation_cost
    for each in before:
        each()
    from birthmark_sma.cli.main import run  # noqa: PLC0415 - the tests that pass by import nothing

    run()
