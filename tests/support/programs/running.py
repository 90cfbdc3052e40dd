"""A running server together with its database, so that a test can query both."""

import os
import re
import secrets
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psycopg

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.storage.engine import Database, open_database
from tests.support.databases.postgres import create_database, drop_database
from tests.support.programs.commands import sma
from tests.support.programs.server import Server, server_environ
from tests.support.programs.workers import find_workers


class AuditRow(NamedTuple):
    """The columns of an audit row that tests compare."""

    validation_result: str
    reason: str
    device_serial: str | None
    request_ip: str | None
    table_id: int
    key_index: int


@dataclass(frozen=True)
class Running:
    """A server, and the URL of the database behind it."""

    server: Server
    database_url: str

    @property
    def uses_sqlite(self) -> bool:
        """True for SQLite, false for PostgreSQL."""
        return self.database_url.startswith("sqlite:")

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables with which `sma` opens this authority."""
        return server_environ(self.server.data_dir, None if self.uses_sqlite else self.database_url)

    def client(self, address: str = "127.0.0.1", **options: Any) -> httpx2.Client:
        """Return an HTTP client that connects from `address`."""
        return self.server.client(address, **options)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, from the database directly."""
        return query(self.database_url, statement, *parameters)

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        number: int = self.rows(f"SELECT count(*) FROM {table}")[0][0]
        return number

    def audit_rows(self, token: CameraToken) -> list[AuditRow]:
        """Return the audit rows of a token, oldest first."""
        return [
            AuditRow(*row)
            for row in self.rows(
                "SELECT validation_result, reason, device_serial, request_ip, table_id, key_index"
                " FROM validation_history WHERE encrypted_nuc_hash = ? ORDER BY id",
                token.encrypted_nuc_hash,
            )
        ]

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Open the database with the product's code until the end of the block."""
        opened = open_database(self.database_url)
        try:
            yield opened
        finally:
            opened.close()


def query(database_url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query with `?` for its parameters, from SQLite or PostgreSQL."""
    if database_url.startswith("sqlite:///"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            return file.execute(statement, parameters).fetchall()
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            statement.replace("?", "%s").encode(), [_plain(value) for value in parameters]
        ).fetchall()


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def start(
    data_dir: Path,
    database_url: str,
    *arguments: str,
    program: Sequence[str] = (),
    **environ: str,
) -> Running:
    """Create an authority if there is none, and start a server on it.

    SQLite always uses the file in the data directory, and there the server creates the authority.
    """
    if database_url.startswith("sqlite:"):
        server = Server(data_dir, *arguments, environ=environ, program=program)
        return Running(server, f"sqlite:///{data_dir / 'sma.db'}")
    if not query(database_url, "SELECT 1 FROM pg_tables WHERE tablename = 'authority'"):
        kind = [each for each in arguments if each == "--sandbox"]
        new_authority = sma("init", *kind, environ=server_environ(data_dir, database_url) | environ)
        assert new_authority.returncode == 0, new_authority.stderr
    server = Server(
        data_dir, *arguments, database_url=database_url, environ=environ, program=program
    )
    return Running(server, database_url)


class Servers:
    """The servers that the tests of one process share, one for each kind of database."""

    def __init__(self, directory: Path, admin_url: str, *arguments: str, **environ: str) -> None:
        self._arguments = arguments
        self._environ = environ
        self._directory = directory
        self._admin_url = admin_url
        self._running: dict[str, Running] = {}
        self._databases: list[str] = []

    def get(self, kind: str) -> Running:
        """Return the server on `sqlite` or `postgresql`. The first call starts it."""
        if kind not in self._running:
            url = "sqlite:" if kind == "sqlite" else self._new_database()
            self._running[kind] = start(
                self._directory / kind, url, *self._arguments, **self._environ
            )
        return self._running[kind]

    def close(self) -> None:
        """Stop all servers, then drop their databases."""
        for running in self._running.values():
            running.server.close()
        for name in self._databases:
            drop_database(self._admin_url, name)

    def _new_database(self) -> str:
        name = f"shared_{secrets.token_hex(8)}"
        self._databases.append(name)
        return create_database(self._admin_url, name)


def new_serial(prefix: str = "camera") -> str:
    """Return a random device serial, so that no other test uses it."""
    return f"{prefix}-{secrets.token_hex(6)}"


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) / 1024


def children_of(pid: int) -> dict[int, str]:
    """Return the running children of a process with their command lines. No zombies."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found[int(place.name)] = line
    return found


def workers_of(running: Running) -> list[int]:
    """Return the worker processes of a server with several workers."""
    return find_workers(running.server.process.pid)


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """Stop processes with SIGSTOP, like a machine that hangs, and continue them at the end.

    Processes that have ended are ignored.
    """
    stopped = list(pids)
    try:
        for pid in stopped:
            _signal(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Wait until `done` returns true. Fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"this did not come within {seconds} seconds"
        time.sleep(0.05)
