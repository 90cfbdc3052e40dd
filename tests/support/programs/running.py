"""A running server together with its database, so that a test can ask both."""

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


class AuditRow(NamedTuple):
    """What the audit trail has of one token."""

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
        """Whether the database is a file."""
        return self.database_url.startswith("sqlite:")

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which `sma` finds this authority."""
        return server_environ(self.server.data_dir, None if self.uses_sqlite else self.database_url)

    def client(self, address: str = "127.0.0.1", **options: Any) -> httpx2.Client:
        """A client of the server."""
        return self.server.client(address, **options)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the database, beside the server."""
        return query(self.database_url, statement, *parameters)

    def count(self, table: str) -> int:
        """How many rows a table has."""
        number: int = self.rows(f"SELECT count(*) FROM {table}")[0][0]
        return number

    def audit_rows(self, token: CameraToken) -> list[AuditRow]:
        """What the audit trail has of a token, oldest first."""
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
        """The database as the project's own code opens it."""
        opened = open_database(self.database_url)
        try:
            yield opened
        finally:
            opened.close()


def query(database_url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a query with `?` for its parameters, on SQLite or PostgreSQL."""
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
    """Found an authority where there is none, and run a server on it.

    SQLite is always the file in the data directory: there the server founds it by itself.
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
        """The server on `sqlite` or `postgresql`, started when it is first asked for."""
        if kind not in self._running:
            url = "sqlite:" if kind == "sqlite" else self._new_database()
            self._running[kind] = start(
                self._directory / kind, url, *self._arguments, **self._environ
            )
        return self._running[kind]

    def close(self) -> None:
        """Stop them all, and drop their databases."""
        for running in self._running.values():
            running.server.close()
        for name in self._databases:
            drop_database(self._admin_url, name)

    def _new_database(self) -> str:
        name = f"shared_{secrets.token_hex(8)}"
        self._databases.append(name)
        return create_database(self._admin_url, name)


def new_serial(prefix: str = "camera") -> str:
    """A device serial that no other test uses."""
    return f"{prefix}-{secrets.token_hex(6)}"


def resident_megabytes(pid: int) -> float:
    """How much memory a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) / 1024


def children_of(pid: int) -> dict[int, str]:
    """The living children of a process, and their command lines."""
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
    """The processes that serve, below the one that looks after them."""
    children = children_of(running.server.process.pid)
    return sorted(pid for pid, line in children.items() if "spawn_main" in line)


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """Stop processes where they stand, as a machine that hangs would; let them go on at the end.

    Those that have ended meanwhile are left out.
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
    """Wait for something, and fail the test where it does not come."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"this did not come within {seconds} seconds"
        time.sleep(0.05)
