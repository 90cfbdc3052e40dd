"""Servers to play faults on, each with its database and what stands between them.

`Place` has what all beds share: a folder and one PostgreSQL, which keeps what was committed.
"""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from urllib.parse import urlsplit

from birthmark_sma.storage.outages import deadlines
from tests.faults.bad_network import BadNetwork
from tests.support.cameras.camera import Camera
from tests.support.databases.commit_loser import CommitLoser
from tests.support.databases.faults import run_statements, server_of_a_clerk
from tests.support.databases.pgbouncer import PgBouncer
from tests.support.databases.postgres import (
    DURABLE_OPTIONS,
    Postgres,
    copy_binaries,
    find_binaries,
    on_server,
    server_account,
)
from tests.support.databases.redis import Redis
from tests.support.programs.false_clock import FalseClock
from tests.support.programs.running import Running, new_serial, start
from tests.support.programs.server import SMA, Server

_FEW = {"SMA_TABLES": "50"}
_OPTIONS = {**DURABLE_OPTIONS, "max_connections": "60", "max_wal_size": "4GB"}
_PIPE_BYTES = 65536


class BedUnavailableError(RuntimeError):
    """This machine lacks a program that a bed needs."""


class BedKind(Enum):
    """What a server runs on. Faults of the same kind share one server."""

    POSTGRESQL = "PostgreSQL"
    SERIALIZABLE = "PostgreSQL, two servers"
    PGBOUNCER = "PgBouncer"
    SQLITE = "SQLite"
    TWO_PROCESSES = "PostgreSQL, a server of two processes"
    FALSE_CLOCK = "PostgreSQL, the server's clock wrong"
    FALSE_DATABASE_CLOCK = "PostgreSQL, its own clock wrong"
    REDIS = "Redis, for rate limits"
    LOG_PIPE = "SQLite, the log in a pipe"


class Place:
    """The folder of a run, and its PostgreSQL. Use it as a context manager."""

    def __init__(self, folder: Path, binaries: Path | None = None) -> None:
        self.folder = folder
        self.postgres = Postgres(_OPTIONS, binaries=binaries)
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.postgres.close()

    def new_folder(self, name: str) -> Path:
        """Return a new folder whose name begins with `name`."""
        self._count += 1
        folder = self.folder / f"{name.lower().replace(' ', '-')}-{self._count}"
        folder.mkdir(parents=True)
        return folder


class Bed:
    """A server, a camera, and what faults get at. Use it as a context manager.

    `rows_url` is the URL of the database past all proxies, for an administrator.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.stack = ExitStack()
        self.running: Running
        self.rows_url: str
        self.network: BadNetwork
        self.commits: CommitLoser
        self.pooler: PgBouncer
        self.redis: Redis
        self.clock: FalseClock
        self.is_log_read = threading.Event()
        self.others: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and what stands before its database."""
        self.stack.close()

    @property
    def postgres(self) -> Postgres:
        """The PostgreSQL of the run."""
        return self.place.postgres

    @property
    def urls(self) -> list[str]:
        """The URLs of all servers."""
        return [self.running.server.url, *(each.url for each in self.others)]

    @property
    def pid(self) -> int:
        """The process id of the server."""
        pid = self.running.server.process.pid
        assert pid is not None
        return pid

    def ends_with(self, last: ExitStack) -> None:
        """Close this after everything else."""
        last.push(self.stack.pop_all())
        self.stack = last

    def sql(self, *statements: str) -> None:
        """Run statements as the administrator."""
        for each in statements:
            run_statements(self.rows_url, self.named(each))

    def named(self, statement: str) -> str:
        """Return a statement with the names of the server's role and database filled in."""
        parts = urlsplit(self.running.database_url)
        named = statement.replace("{role}", str(parts.username))
        return named.replace("{database}", parts.path[1:])

    def new_camera(self) -> Camera:
        """Provision a camera."""
        with self.running.client() as client:
            return Camera.provisioned(client, new_serial())

    def start_again(self) -> None:
        """Start the server again on the same port, as a supervisor does."""
        former = self.running.server
        former.close()
        url = None if self.running.uses_sqlite else self.running.database_url
        port = str(urlsplit(former.url).port)
        server = Server(former.data_dir, "--port", port, database_url=url, environ=_FEW)
        self.stack.callback(server.close)
        self.running = Running(server, self.running.database_url)


def on_postgresql(place: Place, **environ: str) -> Bed:
    """Start a server whose user is no superuser, behind a bad network that can lose COMMITs."""
    bed = Bed(place)
    with ExitStack() as opening:
        opening.enter_context(bed)
        bed.network = bed.stack.enter_context(BadNetwork(place.postgres.url))
        bed.commits = bed.stack.enter_context(CommitLoser(bed.network.url))
        served = server_of_a_clerk(
            bed.commits.url, place.new_folder("postgresql"), **(_FEW | environ)
        )
        bed.running, proxied = bed.stack.enter_context(served)
        bed.rows_url = on_server(place.postgres.url, urlsplit(proxied).path[1:])
        opening.pop_all()
    return bed


def on_two_serializable_servers(place: Place) -> Bed:
    """Start two servers on one database that make every transaction SERIALIZABLE."""
    bed = on_postgresql(place)
    with ExitStack() as opening:
        opening.enter_context(bed)
        url = bed.running.database_url
        bed.running.server.close()
        first, second = (
            bed.stack.enter_context(
                Server(place.new_folder("server") / "data", database_url=url, before=[_serialize])
            )
            for _ in range(2)
        )
        bed.running, bed.others = Running(first, url), [second]
        opening.pop_all()
    return bed


def _serialize() -> None:
    deadlines.ISOLATION = "SERIALIZABLE"


def on_pgbouncer(place: Place) -> Bed:
    """Start a server behind a PgBouncer in transaction mode."""
    bed = Bed(place)
    with ExitStack() as opening:
        opening.enter_context(bed)
        folder = place.new_folder("pgbouncer")
        bed.rows_url = place.postgres.create_database(folder.name)
        bed.pooler = bed.stack.enter_context(PgBouncer(bed.rows_url))
        bed.running = start(folder / "data", bed.pooler.url, **_FEW)
        bed.stack.callback(bed.running.server.close)
        opening.pop_all()
    return bed


def on_sqlite(place: Place, before: Callable[[Path], None] = lambda _: None, **environ: str) -> Bed:
    """Start a server on SQLite. `before` gets the path of its log before the start."""
    bed = Bed(place)
    with ExitStack() as opening:
        opening.enter_context(bed)
        folder = place.new_folder("sqlite")
        before(folder / "data.log")
        bed.running = start(folder / "data", "sqlite:", **(_FEW | environ))
        bed.stack.callback(bed.running.server.close)
        bed.rows_url = bed.running.database_url
        opening.pop_all()
    return bed


def on_redis(place: Place) -> Bed:
    """Start a server that counts its rate limits in a Redis."""
    redis = Redis()
    with ExitStack() as opening:
        opening.callback(redis.close)
        # Callers on loopback have no limit unless one is set, and then nothing would ask Redis.
        limit = {"SMA_RATE_VALIDATE": "100000000/minute"}
        bed = on_postgresql(place, SMA_RATE_STORE=redis.url, **limit)
        bed.redis = redis
        bed.ends_with(opening.pop_all())
    return bed


def with_false_clock(place: Place) -> Bed:
    """Start a server whose wall clock can be changed. It needs a C compiler."""
    bed = on_postgresql(place)
    with ExitStack() as opening:
        opening.enter_context(bed)
        url = bed.running.database_url
        bed.running.server.close()
        folder = place.new_folder("clock")
        bed.clock = _new_clock(folder)
        environ = _FEW | bed.clock.environ
        server = Server(folder / "data", database_url=url, environ=environ, program=SMA)
        bed.running = Running(bed.stack.enter_context(server), url)
        opening.pop_all()
    return bed


def with_false_database_clock(place: Place) -> Bed:
    """Start a server on a PostgreSQL of its own whose wall clock can be changed."""
    with ExitStack() as opening:
        folder = Path(opening.enter_context(TemporaryDirectory(prefix="sma-clock-", dir="/tmp")))
        folder.chmod(0o755)  # PostgreSQL may run as another user
        clock = _new_clock(folder)
        binaries = _wrap_binaries(folder, clock.environ)
        own = opening.enter_context(Place(place.new_folder("own-postgresql"), binaries))
        bed = on_postgresql(own)
        bed.clock = clock
        bed.ends_with(opening.pop_all())
    return bed


def _new_clock(folder: Path) -> FalseClock:
    if shutil.which("cc") is None:
        raise BedUnavailableError("There is no C compiler, so clocks cannot be changed.")
    return FalseClock(folder)


def _wrap_binaries(folder: Path, environ: Mapping[str, str]) -> Path:
    """Return a folder with PostgreSQL's programs that set these variables."""
    real = find_binaries()
    if not server_account().reaches(real / "postgres"):
        real = copy_binaries(real, folder)
    wrapped = folder / "wrapped"
    wrapped.mkdir()
    variables = " ".join(f"{name}={value}" for name, value in environ.items())
    for name in ("initdb", "postgres"):
        script = wrapped / name
        script.write_text(f'#!/bin/sh\nexec env {variables} {real / name} "$@"\n', encoding="ascii")
        script.chmod(0o755)
    return wrapped


def with_log_in_a_pipe(place: Place) -> Bed:
    """Start a server whose log goes into a pipe, which is read while `is_log_read` is set."""
    is_read, is_over = threading.Event(), threading.Event()
    readers: list[threading.Thread] = []

    def make_pipe(log: Path) -> None:
        os.mkfifo(log)
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        reader = threading.Thread(target=_drain, args=(descriptor, is_read, is_over))
        readers.append(reader)
        is_read.set()
        reader.start()

    def end() -> None:
        is_over.set()
        for each in readers:
            each.join()

    with ExitStack() as opening:
        opening.callback(end)
        bed = on_sqlite(place, make_pipe, SMA_LOG_LEVEL="debug")
        bed.is_log_read = is_read
        bed.ends_with(opening.pop_all())
    return bed


def _drain(descriptor: int, is_read: threading.Event, is_over: threading.Event) -> None:
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while not is_over.wait(0.02):
            if is_read.is_set():
                while pipe.read(_PIPE_BYTES):
                    pass


OPENERS: Mapping[BedKind, Callable[[Place], Bed]] = {
    BedKind.POSTGRESQL: on_postgresql,
    BedKind.SERIALIZABLE: on_two_serializable_servers,
    BedKind.PGBOUNCER: on_pgbouncer,
    BedKind.SQLITE: on_sqlite,
    BedKind.TWO_PROCESSES: partial(on_postgresql, SMA_WORKERS="2"),
    BedKind.FALSE_CLOCK: with_false_clock,
    BedKind.FALSE_DATABASE_CLOCK: with_false_database_clock,
    BedKind.REDIS: on_redis,
    BedKind.LOG_PIPE: with_log_in_a_pipe,
}
