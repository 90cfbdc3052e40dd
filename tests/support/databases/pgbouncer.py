"""Start a temporary PgBouncer in transaction mode in front of a PostgreSQL, for tests.

`with PgBouncer(url) as pooler:` starts it on a free port of 127.0.0.1. Each transaction gets the
next one of its few connections to the server, which is the worst case for prepared statements.
The program is the system's, or Debian's, which `make setup-pgbouncer` unpacks into .cache. It
refuses to run as root; for root it runs as `nobody`.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import psycopg

_UNPACKED = Path(__file__).parents[3] / ".cache" / "pgbouncer"
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_CONFIGURATION = """
[databases]
pooled = host={host} port={port} dbname={database} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 6
server_round_robin = 1
max_client_conn = 200
"""


class PgBouncerUnavailableError(RuntimeError):
    """This machine has no PgBouncer, or it did not start."""


class PgBouncer:
    """A running PgBouncer in front of the database of `url`. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="sma-pgbouncer-", dir="/tmp"))
        program, libraries = _find_program(self._folder)
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                host=parts.hostname,
                port=parts.port,
                database=parts.path.removeprefix("/"),
                user=parts.username,
                password=unquote(parts.password or ""),
                own_port=self._port,
            )
        )
        self.url = f"postgresql://{secrets.token_hex(4)}@127.0.0.1:{self._port}/pooled"
        """The URL of the database, through PgBouncer."""
        self._command = [program, "-q", str(configuration)]
        self._environ = dict(os.environ) | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def restart(self) -> None:
        """Kill it, and start it again on the same port."""
        self._process.kill()
        self._process.wait(_STOP_SECONDS)
        self._start()

    def close(self) -> None:
        """Stop it and remove its files."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=self._environ,
                **_as_nobody(self._folder),
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with psycopg.connect(self.url, connect_timeout=5):
                    return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text(errors="replace")
                    raise PgBouncerUnavailableError(f"PgBouncer did not start: {said}") from error
                time.sleep(0.05)


def _find_program(folder: Path) -> tuple[str, str]:
    """Return the path of the program, and where its libraries are unless they are the system's.

    An unpacked one is copied to `folder`, where every user can reach it.
    """
    system = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if system is not None:
        return system, ""
    if not (_UNPACKED / "usr" / "sbin" / "pgbouncer").exists():
        raise PgBouncerUnavailableError(
            "There is no PgBouncer to test with. `make setup-pgbouncer` unpacks Debian's; elsewhere"
            " install your system's package."
        )
    shutil.copytree(_UNPACKED / "usr", folder / "usr", symlinks=True)
    libraries = ":".join(str(each) for each in (folder / "usr" / "lib").glob("*-linux-*"))
    return str(folder / "usr" / "sbin" / "pgbouncer"), libraries


def _as_nobody(folder: Path) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for each in (folder, *folder.rglob("*")):
        os.chown(each, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
