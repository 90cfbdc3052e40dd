"""Run `sma serve` in a process of its own, on a free port of 127.0.0.1."""

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.support import derivation_cost
from tests.support.programs.commands import Command

START_SECONDS = 90
STOP_SECONDS = 60
_TLS = ssl.create_default_context()  # shared, because making one takes longer than most tests
# -P keeps the script's folder out of sys.path, where its modules could hide others.
SMA = (sys.executable, "-P", str(derivation_cost.__file__))
"""`sma` in a process that imports everything itself, with a low cost of key derivations."""
REAL_SMA = (sys.executable, "-m", "birthmark_sma")
"""`sma` as operators run it. It cannot open data that `SMA` or a forked command has written."""
PASSPHRASE = "a passphrase for tests alone"


class Server:
    """A running server. The context manager stops it at the end, also after an error.

    `data_dir` holds SQLite unless `database_url` is given. The file `log` has its stderr. `program`
    is the command to start; by default the server is forked from a process that has imported
    everything, and calls the functions of `before` first.
    """

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        database_url: str | None = None,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = (),
        before: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self._environ = server_environ(data_dir, database_url) | dict(environ or {})
        self._program = program
        self._before = before
        self._arguments = ["serve", "--json", "--port", "0", *arguments]
        self.process = self._start()
        self.facts = self._read_facts()
        self.url: str = self.facts["url"]

    def client(self, address: str = "127.0.0.1", **options: Any) -> httpx2.Client:
        """Return an HTTP client that connects from an address of the loopback network."""
        return httpx2.Client(
            base_url=self.url,
            timeout=30,
            trust_env=False,
            transport=httpx2.HTTPTransport(
                local_address=address,
                limits=httpx2.Limits(max_connections=None),
                verify=_TLS,
            ),
            **options,
        )

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait for its end."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def terminate(self) -> int:
        """Send SIGTERM, wait for the end of the process, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def said(self) -> str:
        """Return everything that the server wrote to stderr."""
        return self.log.read_text(encoding="utf-8")

    def log_records(self) -> list[dict[str, Any]]:
        """Return the complete lines of a JSON log, parsed. Lines that are no JSON are left out."""
        lines = self.said().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]

    def close(self) -> None:
        """Stop the process if it runs, with SIGKILL if it does not end within 60 s."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> "subprocess.Popen[str] | Command":
        with self.log.open("a", encoding="utf-8") as log:
            if not self._program:
                return Command(self._arguments, self._environ, stderr=log, before=self._before)
            return subprocess.Popen(
                [*self._program, *self._arguments],
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _read_facts(self) -> dict[str, Any]:
        try:
            return read_facts(self.process)
        except AssertionError as error:
            self.process.wait(START_SECONDS)
            raise AssertionError(f"{error}: {self.said()}") from None


def read_facts(process: "subprocess.Popen[str] | Command") -> dict[str, Any]:
    """Return the JSON object that `sma serve --json` prints, after whatever came before it.

    Raises AssertionError if the output ends without one.
    """
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text = line if line == "{\n" else text + line
        if line == "}\n":
            facts: dict[str, Any] = json.loads(text)
            return facts
    raise AssertionError("the server did not start")


def server_environ(data_dir: Path, database_url: str | None = None) -> dict[str, str]:
    """Return the environment of `sma` for tests: EC keys, and no settings of the developer."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SMA_") and name not in {"DATABASE_URL", "CA_PASSWORD", "PORT"}
    }
    environ |= {"SMA_DATA_DIR": str(data_dir), "SMA_CA_KEY_TYPE": "ec-p256"}
    # By default there would be one process for each core, and the tests run beside each other.
    environ["SMA_WORKERS"] = "1"
    environ["SMA_DATABASE_WAIT"] = "0"
    if database_url is not None:
        environ |= {"DATABASE_URL": database_url, "CA_PASSWORD": PASSPHRASE}
    return environ
