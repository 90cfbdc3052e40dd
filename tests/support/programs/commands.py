"""Run commands of `sma`, each in a process of its own that does not import everything again.

Imports take most of the time of a short command and half of a server's start, and the tests need
hundreds of both. So commands are forked from a process that has imported everything once and does
nothing else. Arguments, environment, directory and standard streams belong to each command. Tests
that measure memory or look at the command line must start `SMA` of `server.py` instead.

Key derivations have a low cost: see `tests/support/derivation_cost.py`.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from birthmark_sma.authority.kek import rotation
from tests.support import derivation_cost
from tests.support.programs.fork_server import FORKING, Handed, take_over
from tests.support.programs.workers import fork_workers

_SECONDS = 90


class Command:
    """A running command, with the part of the `subprocess.Popen` interface that tests use."""

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
        """Start the command. If `stdout` is None, the attribute `stdout` is a pipe to read from.

        The process calls the functions of `before` in order, before the command.
        """
        self.args = ["sma", *arguments]
        self.stdout: IO[str] | None = None
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            if stdout is None:
                reading, writing = os.pipe()
                self.stdout, stdout = os.fdopen(reading, encoding="utf-8"), os.fdopen(writing, "w")
            streams = [Handed(each.fileno()) for each in (stdin or nothing, stdout, stderr)]
            self._process = FORKING.Process(
                target=_run,
                args=(self.args, dict(environ), cwd or Path.cwd(), before, *streams),
            )
            self._process.start()
            if self.stdout is not None:
                stdout.close()
        _running.add(self)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the number of the signal that ended it, or None while it runs."""
        code = self._process.exitcode
        if code is not None:
            _running.discard(self)
        return code

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Background(Command):
    """A command that runs in parallel with the test, as the leader of a process group.

    If `reads` is true, `stdin` is a pipe to it. Its output goes to temporary files, which
    `communicate` reads at its end.
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
        """Write `text` to stdin, wait for the end, and return stdout and stderr."""
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
    """Kill the commands of failed tests. At exit, multiprocessing would wait for them for ever."""
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
    """Run a command of `sma` to its end. Raises subprocess.TimeoutExpired after `seconds`.

    The process calls the functions of `before` in order, before the command.
    """
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
    """Set the time for which a rotation waits for servers to 0. Only if no server runs."""
    vars(rotation)["FOLLOWING_SECONDS"] = 0.0


def _new_file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", newline="")


def _run(
    arguments: list[str],
    environ: Mapping[str, str],
    cwd: Path,
    before: Sequence[Callable[[], object]],
    *descriptors: int,
) -> None:
    take_over(environ, cwd, *descriptors)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.argv = arguments
    derivation_cost.lower(derivation_cost.OF_AUTHORITIES)
    if "serve" in arguments:
        fork_workers()
    for each in before:
        each()
    from birthmark_sma.cli.main import run  # noqa: PLC0415 - the tests that pass by import nothing

    run()
