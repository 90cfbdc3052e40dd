"""Commands of `sma`, each in a process of its own that need not import everything again.

Importing is most of what a short command costs, and the tests give hundreds of them. So they are
forked from a process that has imported the commands once, and does nothing else. What a command
reads of its surroundings (arguments, environment, directory, standard streams) is its own.
"""

import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import birthmark_sma

_SECONDS = 90
_STREAMS = ("stdin", "stdout", "stderr")

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    [
        each.name
        for each in pkgutil.walk_packages(birthmark_sma.__path__, "birthmark_sma.")
        if not each.name.endswith("__main__")
    ]
)


def sma(
    *arguments: str, environ: Mapping[str, str], stdin: str | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command of `sma` to its end."""
    with tempfile.TemporaryDirectory() as name:
        streams = {each: Path(name) / each for each in _STREAMS}
        for path in streams.values():
            path.touch()
        streams["stdin"].write_text(stdin or "", encoding="utf-8")
        process = _forking.Process(
            target=_run, args=(arguments, dict(environ), cwd or Path.cwd(), streams)
        )
        process.start()
        process.join(_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["sma", *arguments], _SECONDS)
        code = process.exitcode
        assert code is not None
        said, told = (streams[each].read_bytes().decode() for each in ("stdout", "stderr"))
        return subprocess.CompletedProcess(["sma", *arguments], code, said, told)


def _run(
    arguments: Sequence[str], environ: Mapping[str, str], cwd: Path, streams: Mapping[str, Path]
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, each in enumerate(_STREAMS):
        opened = os.open(streams[each], os.O_RDONLY if each == "stdin" else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.argv = ["sma", *arguments]
    from birthmark_sma.cli.main import run  # noqa: PLC0415 - the tests that pass by import nothing

    run()
