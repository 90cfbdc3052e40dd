"""A temporary folder for the programs of a cluster, and the processes that run in it (Linux).

Each program has a folder of its own below, as its working directory. So all its processes are found
in /proc, also those that PostgreSQL has forked, and nothing else is ever signalled. A guard (a
small shell) kills what is left and removes the folder when the tests end, even by SIGKILL.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.databases.postgres import (
    copy_binaries,
    find_binaries,
    parent_folder,
    server_account,
)

UNPACKED = Path(__file__).parents[2] / ".cache" / "high-availability"
"""Where `make setup-ha` puts the programs."""
_ADVICE = "Type: make setup-ha"
_END_SECONDS = 30.0
_GUARD = """
while read -r line; do :; done
tries=0
while [ $tries -lt 20 ]; do
  for place in /proc/[0-9]*; do
    case $(readlink "$place/cwd" 2>/dev/null) in "$1"/*) kill -9 "${place#/proc/}";; esac
  done
  rm -rf "$1" 2>/dev/null && exit
  sleep 0.1
  tries=$((tries + 1))
done
"""


class Home:
    """The folder. `python`, `postgres` and `library` are what its programs run with."""

    def __init__(self) -> None:
        self._account = server_account()
        parent = parent_folder(self._account, durable=False)
        self.path = Path(tempfile.mkdtemp(prefix="sma-ha-", dir=parent))
        # A session of its own, so that Ctrl-C in a terminal does not reach the guard.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._started: list[subprocess.Popen[bytes]] = []
        try:
            self._bring_programs()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def program(self, name: str) -> str:
        """Return the path of etcd or HAProxy: the system's, or the one that was unpacked."""
        unpacked = f"{self._unpacked / 'usr' / 'sbin'}:{self._unpacked / 'usr' / 'bin'}"
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{unpacked}")
        assert found is not None, f"{name} is missing. {_ADVICE}"
        return found

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start a program with the working directory `name`. Its output is in the file `log`."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        self._account.takes(folder)
        with (folder / "log").open("ab") as log:
            self._started.append(
                subprocess.Popen(command, stdout=log, stderr=log, **self._as_in(folder, environ))
            )

    def run(self, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
        """Run a command to its end and return what it printed. Fails if it fails."""
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
            **self._as_in(self.path, environ),
        )
        said: str = done.stdout.decode(errors="replace")
        assert done.returncode == 0, said
        return said

    def log(self, name: str) -> str:
        """Return everything that a program has printed."""
        return (self.path / name / "log").read_text(encoding="utf-8", errors="replace")

    def processes(self, name: str) -> set[int]:
        """Return the processes of a program that run. Zombies have no working directory."""
        folder = self.path / name
        found = set()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (place / "cwd").readlink().is_relative_to(folder):
                    found.add(int(place.name))
        return found

    def send(self, name: str, number: signal.Signals) -> set[int]:
        """Send a signal to all processes of a program, and return them."""
        signalled: set[int] = set()
        while left := self.processes(name) - signalled:  # one may fork during the listing
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= left
        return signalled

    def kill(self, name: str) -> None:
        """Kill all processes of a program at once, and return when they have ended."""
        self.send(name, signal.SIGSTOP)  # so that none notices the end of another one
        self.send(name, signal.SIGKILL)
        self._wait_for_end(name)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Let a program end in order: signal the process that was started. Then kill the rest."""
        with contextlib.suppress(AssertionError):
            running = self.processes(name)
            for each in self._started:
                if each.pid in running:
                    each.send_signal(number)
            self._wait_for_end(name)
        self.kill(name)

    def close(self) -> None:
        """Kill what runs and remove the folder."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        for each in self._started:
            each.wait()

    def _wait_for_end(self, name: str) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while self.processes(name):
            for each in self._started:
                each.poll()  # takes note of an ended process
            assert time.monotonic() < deadline, f"{name} did not end"
            time.sleep(0.02)

    def _as_in(self, folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
        own = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.path)}
        own |= {"PYTHONPATH": str(self.library), "LD_LIBRARY_PATH": self._libraries}
        return {
            "cwd": folder,
            "env": own | dict(environ),
            "user": self._account.uid,
            "group": self._account.gid,
            "extra_groups": self._account.groups,
            "start_new_session": True,
            "stdin": subprocess.DEVNULL,
        }

    def _bring_programs(self) -> None:
        """Copy the programs that the account cannot reach."""
        self.postgres = find_binaries()
        if not self._account.reaches(self.postgres / "postgres"):
            self.postgres = copy_binaries(self.postgres, self.path / "binaries")
        self._unpacked = UNPACKED
        assert (UNPACKED / "patroni").is_dir(), f"Patroni is missing. {_ADVICE}"
        if not self._account.reaches(UNPACKED / "patroni" / "patroni"):
            self._unpacked = self.path / "unpacked"
            shutil.copytree(UNPACKED, self._unpacked, symlinks=True)
        self.library = self._unpacked / "patroni"
        self._libraries = ":".join(map(str, self._unpacked.glob("usr/lib/*-linux-*")))
        self._account.takes(self.path)
        # The library has compiled modules for the Python of .venv.
        own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        named = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
        reached = [
            each for each in (own, named and Path(named)) if each and self._account.reaches(each)
        ]
        assert reached, f"{own} is not for every user. Run these tests as an ordinary user."
        self.python = str(reached[0])
