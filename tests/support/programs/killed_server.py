"""Kill a server with SIGKILL: in the middle of requests, or before a step in the database."""

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tests.support.programs.kill_points import die_when_told
from tests.support.programs.running import Running
from tests.support.programs.server import Server

_SECONDS = 60
_DYING_SECONDS = 5
"""A killed server may need more time to its end than a command has steps left."""
Name = TypeVar("Name")
Send = Callable[[httpx2.Client], httpx2.Response]


def send_until_killed(
    running: Running, requests: Mapping[Name, Send], *, within: float
) -> dict[Name, dict[str, Any]]:
    """Send all requests at once, and kill the server at a random time within `within` seconds.

    Return the bodies of the responses with status 200, by the names of the requests.
    """
    answered: dict[Name, dict[str, Any]] = {}
    start = threading.Barrier(len(requests) + 1)

    def send(name: Name) -> None:
        with running.client() as client:
            start.wait(_SECONDS)
            try:
                answer = requests[name](client)
            except httpx2.HTTPError:
                return
        if answer.status_code == 200:
            answered[name] = answer.json()

    with ThreadPoolExecutor(len(requests)) as threads:
        sent = [threads.submit(send, name) for name in requests]
        start.wait(_SECONDS)
        time.sleep(random.uniform(0.01, within))
        running.server.kill()
        for each in sent:
            each.result(_SECONDS)
    running.server.close()
    return answered


class KillableServer:
    """A server that dies before a step in the database, when it is told.

    `running` is a server on the same data, which is killed first. The file `orders` is the one of
    `kill_points.die_when_told`.
    """

    def __init__(self, running: Running, orders: Path, *options: str) -> None:
        self.running = running
        self.data_dir = running.server.data_dir
        self._orders = orders
        self._options = options
        self.running.server.kill()
        self.restart()

    def restart(self) -> bool:
        """Start the server again, and return True if it was dead."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.running.server.process.wait(_DYING_SECONDS)
        was_dead = self.running.server.process.poll() is not None
        self.close()
        self.forget()
        url = self.running.database_url
        server = Server(
            self.data_dir,
            *self._options,
            database_url=None if self.running.uses_sqlite else url,
            before=[partial(die_when_told, self._orders)],
        )
        self.running = Running(server, url)
        return was_dead

    def close(self) -> None:
        """Kill the server if it runs."""
        self.running.server.kill()
        self.running.server.close()

    def forget(self) -> None:
        """Let the server live on."""
        for file in (self._orders, self._orders.with_suffix(".steps")):
            file.unlink(missing_ok=True)

    def tell_server(self, last: int) -> None:
        """Let the server die before its `last` step in the database from now on; 0 is never."""
        told = self._orders.with_suffix(".new")
        told.write_text(str(last), encoding="ascii")
        told.rename(self._orders)

    def server_steps(self) -> int:
        """Return the steps of the server in the database since `tell_server`."""
        return self._orders.with_suffix(".steps").stat().st_size
