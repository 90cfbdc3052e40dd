"""Run this program's server as a process of its own, for commands that play against it.

`sma demo` and `sma drill` call it. The server must never use the settings of the environment by
accident: the caller passes every setting.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from birthmark_sma.errors import ConfigurationError

_STOP_SECONDS = 60
_PLATFORM_NAMES = {"DATABASE_URL", "CA_PASSWORD", "PORT"}


@contextmanager
def running_server(directory: Path, settings: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Start `sma serve` on loopback, yield the facts that it prints, and stop it at the end.

    `settings` are environment variables. Those of this process are left out, so that the server
    never reaches a database in use. `directory` is the server's working directory, and gets its log
    as `server.log`. Raises ConfigurationError with the end of the log if the server does not start.
    """
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SMA_") and name not in _PLATFORM_NAMES
    }
    log = directory / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(  # noqa: S603  this very program, and one of util-linux
            [*_ends_with_parent(), sys.executable, "-m", "birthmark_sma", "serve", "--json"],
            cwd=directory,
            env=environ | dict(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        )
    try:
        assert process.stdout is not None  # noqa: S101
        # The server prints one indented JSON object and keeps stdout open, so the line with the
        # closing brace is the end.
        facts = "".join(takewhile(lambda line: line != "}\n", process.stdout))
        if not facts:
            process.wait(_STOP_SECONDS)
            raise ConfigurationError(f"The server did not start: {_last_line(log)}")
        yield json.loads(facts + "}")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_SECONDS)
        except BaseException:  # a second Ctrl-C as well: the server must not outlive the command
            process.kill()
            process.wait()
            raise


def _ends_with_parent() -> list[str]:
    """Return the beginning of a command that gets SIGTERM when this process dies, even by SIGKILL.

    It is a program of util-linux. Without it a server outlives a killed command.
    """
    program = shutil.which("setpriv")
    return [] if program is None else [program, "--pdeathsig", "TERM"]


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing."
