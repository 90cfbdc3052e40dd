"""Start what a hosting platform would start, in an empty folder and with its variables alone.

The tests of tests/end_to_end/install/ use it. The database is a real PostgreSQL.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.access_keys import bearer
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.deployment.platforms import Platform
from tests.support.http.ports import free_port
from tests.support.programs.commands import Command, sma
from tests.support.programs.running import wait_until

PASSPHRASE = "a passphrase for tests alone"
SCOPES = ("admin", "provision", "validate")


@dataclass(frozen=True)
class Remote:
    """The database of an authority that was created at home, and its access keys."""

    url: str
    keys: Mapping[str, str]


def machine(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a process: a path and these variables."""
    return {"PATH": os.environ["PATH"]} | dict(variables)


def create_key(environ: Mapping[str, str], folder: Path, scope: str) -> str:
    """Create an access key with a one-off process in an empty folder, and return its secret."""
    folder.mkdir()
    made = sma("keys", "create", scope, "--scope", scope, "--json", environ=environ, cwd=folder)
    assert made.returncode == 0, made.stderr
    assert not list(folder.iterdir())
    secret: str = json.loads(made.stdout)["key"]
    return secret


def environ_of(platform: Platform, database_url: str, port: int = 8000) -> dict[str, str]:
    """Return the environment of a process on a platform whose operator set two variables."""
    given = {"DATABASE_URL": database_url, "CA_PASSWORD": PASSPHRASE, "PORT": str(port)}
    environ = machine(dict(platform.environ) | given)
    environ.pop("SMA_RATE_STORE", None)  # its host exists in that network alone
    environ.pop("SMA_WORKERS", None)  # each worker imports everything again, which takes seconds
    if "SMA_DATA_DIR" in environ:
        environ["SMA_DATA_DIR"] = "data"  # in the empty folder
    return environ


def arguments_of(command: list[str]) -> list[str]:
    """Return the arguments of a command of `sma`."""
    assert Path(command[0]).name == "sma"
    return command[1:]


class Deployment:
    """A running web process of a platform, on a port of 127.0.0.1."""

    def __init__(self, platform: Platform, database_url: str, folder: Path, **extra: str) -> None:
        folder.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder.with_suffix(".log")
        with self.log.open("w", encoding="utf-8") as log:
            self.process = Command(
                arguments_of(platform.web),
                environ_of(platform, database_url, port) | extra,
                folder,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        """Return everything that the process wrote."""
        return self.log.read_text(encoding="utf-8")

    def is_ready(self) -> bool:
        """Return whether the platform's health check succeeds. Fail if the process has ended."""
        assert self.process.poll() is None, self.said()
        try:
            return httpx2.get(f"{self.url}/health/ready", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def client(self, key: str) -> httpx2.Client:
        """Return a client that shows an access key."""
        return httpx2.Client(base_url=self.url, headers=bearer(key), timeout=30, trust_env=False)

    def verdict(self, key: str, token: CameraToken) -> str:
        """Validate a token with an access key, and return PASS or FAIL."""
        with self.client(key) as newsroom:
            answer = newsroom.post(VALIDATE, json=wire(token))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["validation_result"])

    def stop(self) -> int:
        """Send SIGTERM, as a platform does, and return the exit code."""
        self.process.terminate()
        return self.process.wait(30)


@contextmanager
def deployed(
    platform: Platform, database_url: str, folder: Path, **extra: str
) -> Iterator[Deployment]:
    """Start a web process and wait until it is ready. Kill it at the end if it still runs."""
    deployment = Deployment(platform, database_url, folder, **extra)
    try:
        wait_until(deployment.is_ready, 60)
        yield deployment
    finally:
        deployment.process.kill()
