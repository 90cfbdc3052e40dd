"""Run PostgreSQL's programs pg_dump and pg_restore, found on PATH. `backup` and `restore` use them.

The password is passed in the environment variable PGPASSWORD, never on the command line, which all
users of the machine can read.
"""

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import IO, BinaryIO, NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from birthmark_sma.authority.operations.backup_manifest import Progress, pump
from birthmark_sma.errors import BackupError
from birthmark_sma.storage.outages.deadlines import TCP_TIMEOUTS

_VERSION_SECONDS = 30
_LOCK_SECONDS = 30
"""Prevents a deadlock that PostgreSQL cannot see: pg_dump waits for a program that changes a table,
that program waits for the locks of our transaction, and our process waits for pg_dump."""
_SILENT_SECONDS = 900.0  # for each MiB that pg_dump writes
_LOOK_SECONDS = 0.5
_MOST_SAID = 1 << 20  # bytes of an error message
# These belong to the old server. The restored database may have other users and tablespaces.
_WHAT_IS_LEFT_OUT = (
    "--no-owner",
    "--no-privileges",
    "--no-comments",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
    "--no-tablespaces",
)
_ONLY_RESTORED = ("--single-transaction", "--exit-on-error")


class Program(NamedTuple):
    """The path of a program, and its major version."""

    path: str
    major: int


def find_program(name: str, *, at_least: int) -> Program:
    """Return the PostgreSQL program `name` from PATH, of major version `at_least` or later.

    Raises BackupError if it is missing, fails or is too old; the message names what to install.
    """
    path = shutil.which(name)
    if path is None:
        raise BackupError(
            f"{name} is not on PATH. Install PostgreSQL's client programs, version {at_least} or"
            " later."
        )
    try:
        said = subprocess.run(  # noqa: S603  the operator's own PostgreSQL
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        raise BackupError(f"{path} cannot be run. To see why, type: {name} --version") from None
    version = re.search(r"\) (\d+)", said)
    if version is None:
        raise BackupError(
            f"{path} did not print its version. Put PostgreSQL's own {name} first on PATH."
        )
    found = Program(path, int(version[1]))
    if found.major < at_least:
        raise BackupError(
            f"{path} is of PostgreSQL {found.major}, which is too old. Put version {at_least} or"
            " later first on PATH."
        )
    return found


def dump(program: Program, url: str, snapshot: str, file: BinaryIO, progress: Progress) -> None:
    """Dump the database, as the exported `snapshot` sees it, to a file in pg_dump's custom format.

    `progress` counts bytes. Raises BackupError, or OSError if the file cannot be written. pg_dump
    would wait for ever for a server that is frozen, so it is killed if it writes too little.
    """
    arguments = [
        "--format=custom",
        "--compress=1",
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={_LOCK_SECONDS * 1000}",
        *_WHAT_IS_LEFT_OUT,
    ]
    with (
        _running(program, arguments, url, "pg_dump") as process,
        _killed_when_silent(process) as silence,
    ):

        def note(done: int, total: int | None) -> None:
            silence.heard_at = monotonic()
            progress(done, total)

        pump(_output(process), file.write, note, total=None)
        if silence.was_too_long:
            raise BackupError(
                f"pg_dump got less than 1 MiB in {_SILENT_SECONDS // 60:.0f} minutes, and was"
                " ended. Look for a frozen database or a cut network, and run the backup again."
            )


def restore(program: Program, url: str, file: BinaryIO, progress: Progress) -> None:
    """Restore a file of `dump` into an empty database, in one transaction.

    `progress` counts bytes. Raises BackupError; the database is then empty still.
    """
    arguments = [*_ONLY_RESTORED, *_WHAT_IS_LEFT_OUT]
    total = os.fstat(file.fileno()).st_size
    with _running(program, arguments, url, "pg_restore") as process:
        intake = _intake(process)
        # A broken pipe means that pg_restore has ended. `_running` then raises its error.
        with suppress(BrokenPipeError):
            pump(file, intake.write, progress, total=total)
        with suppress(BrokenPipeError):
            intake.close()


@contextmanager
def _running(
    program: Program, arguments: list[str], url: str, name: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a program, yield it with pipes to it and from it, and wait for it after the block.

    Raises BackupError if it exits with an error. If the block raises, the program is killed.
    """
    place, password = _without_password(url)
    environ = dict(os.environ) | ({} if password is None else {"PGPASSWORD": password})
    # stderr goes to a file: a pipe that nobody reads could fill up and block the program.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603  the operator's own PostgreSQL
            [program.path, "--no-password", f"--dbname={place}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environ,
        )
        pipes = _intake(process), _output(process)
        try:
            yield process
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in pipes:
                with suppress(BrokenPipeError):
                    pipe.close()
        if code != 0:
            said.seek(0)
            raise BackupError(f"{name} failed: {_first_fault(said.read(_MOST_SAID))}.")


def _intake(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101  `_running` makes both pipes
    return process.stdin


def _output(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None  # noqa: S101  `_running` makes both pipes
    return process.stdout


class _Silence:
    """Since when a program has written nothing, and whether it was killed for that."""

    def __init__(self) -> None:
        self.heard_at = monotonic()
        self.was_too_long = False


@contextmanager
def _killed_when_silent(process: "subprocess.Popen[bytes]") -> Iterator[_Silence]:
    """Kill a program if `heard_at` is not set for `_SILENT_SECONDS`, until the end of the block."""
    silence = _Silence()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            if monotonic() - silence.heard_at > _SILENT_SECONDS:
                silence.was_too_long = True
                process.kill()
                return

    threading.Thread(target=watch, name="pg-dump-watch", daemon=True).start()
    try:
        yield silence
    finally:
        ended.set()


def _without_password(url: str) -> tuple[str, str | None]:
    given = conninfo_to_dict(url)
    if "sslpassword" in given:
        raise BackupError(
            "DATABASE_URL has an sslpassword. PostgreSQL's programs accept it on their command line"
            " only, where all users of this machine can read it. Use a key without a password."
        )
    password = given.pop("password", None)
    # As for our own connections: a host that vanished ends the program.
    return make_conninfo("", **(TCP_TIMEOUTS | given)), None if password is None else str(password)


def _first_fault(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    faults = [line for line in lines if "error:" in line or "FATAL:" in line] or lines
    first = faults[0] if faults else "it printed no reason"
    return re.sub(r"^\w+: (error: )?", "", first).rstrip(".")
