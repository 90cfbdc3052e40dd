"""An authority with a server, and `sma` on the database and on the server."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from birthmark_sma.config import environment_variable
from tests.support.access_keys import bearer, start_with_keys
from tests.support.databases.postgres import create_database, drop_database
from tests.support.programs.commands import sma
from tests.support.programs.running import Running

Ended = CompletedProcess[str]
REQUEST_ID = "a-request-of-the-tests"
SERVER, KEY = environment_variable("server"), environment_variable("server_key")


@dataclass(frozen=True)
class Remote:
    """A running server, and an access key of each scope."""

    running: Running
    keys: Mapping[str, str]
    folder: Path

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self.running.server.url

    def on_database(self, *arguments: str, stdin: str | None = None) -> Ended:
        """Run a command on the database."""
        return sma(*arguments, environ=self.running.environ, cwd=self.folder, stdin=stdin)

    def on_server(
        self,
        *arguments: str,
        role: str = "admin",
        stdin: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command on the server, with the key of a role and further settings."""
        environ = {KEY: self.keys[role]} | dict(settings or {})
        given = ("--server", self.url, *arguments)
        return sma(*given, environ=environ, cwd=self.folder, stdin=stdin)


def populate(remote: Remote, *serials: str) -> None:
    """Provision devices."""
    for serial in serials:
        done = remote.on_database(
            *("provision", serial, "--family", "Pi", "--output-dir", f"device {serial}")
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def _started(folder: Path, database_url: str) -> Iterator[Remote]:
    running, keys = start_with_keys(folder / "data", database_url)
    try:
        remote = Remote(running, keys, folder)
        populate(remote, "base-1", "base-2", "base-3")
        token = {"encrypted_nuc_hash": "ab" * 48, "table_id": 1, "key_index": 1, "nonce": "cd" * 12}
        with running.client(headers=bearer(keys["validate"])) as client:
            for _ in range(2):
                answer = client.post(
                    "/api/v1/validate/nuc", json=token, headers={"X-Request-ID": REQUEST_ID}
                )
                assert answer.status_code == 200
        yield remote
    finally:
        running.server.close()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A server whose authority has three devices and two validations, on SQLite."""
    folder = tmp_path_factory.mktemp("remote")
    with _started(folder, f"sqlite:///{folder / 'data' / 'sma.db'}") as remote:
        yield remote


@pytest.fixture(scope="module")
def remote_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Remote]:
    """The same on PostgreSQL."""
    name = f"remote_administration_{time.time_ns()}"  # processes of tests share the server
    url = create_database(postgres_admin_url, name)
    with _started(tmp_path_factory.mktemp("remote"), url) as remote:
        yield remote
    drop_database(postgres_admin_url, name)


@pytest.fixture(params=["remote", "remote_on_postgresql"])
def each_remote(request: pytest.FixtureRequest) -> Remote:
    """Both, one after the other."""
    remote: Remote = request.getfixturevalue(request.param)
    return remote
