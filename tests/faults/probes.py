"""Probes of /health/ready and /health/live, five times a second, as a load balancer sends them."""

import asyncio
import threading
import time
from typing import NamedTuple, Self

from tests.support.programs.load import BrokenConnectionError, Connection

READY, LIVE = "/health/ready", "/health/live"
PAUSE_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0


class Probed(NamedTuple):
    """The outcome of a probe. The status 0 is no answer within 5 seconds."""

    sent_at: float
    at: float
    status: int


class Probes:
    """Sends the probes from the start to the end of its block, each kind on one connection."""

    def __init__(self, url: str) -> None:
        self.of: dict[str, list[Probed]] = {READY: [], LIVE: []}
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def is_ready(self, since: float) -> bool:
        """Return True if a probe that was sent after `since` is the last one, and said 200."""
        probes = self.of[READY]
        return bool(probes) and probes[-1].sent_at > since and probes[-1].status == 200

    def between(self, path: str, begin: float, end: float) -> list[Probed]:
        """Return the probes that were answered, or given up, in a time."""
        return [each for each in self.of[path] if begin < each.at <= end]

    async def _send(self) -> None:
        async with asyncio.TaskGroup() as group:
            for path in self.of:
                group.create_task(self._probe(path))

    async def _probe(self, path: str) -> None:
        connection: Connection | None = None
        while not self._over.is_set():
            began = time.monotonic()
            status = 0
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    connection = connection or await Connection.open(self._url)
                    status = (await connection.ask("GET", path)).status
            except (BrokenConnectionError, TimeoutError):
                if connection is not None:
                    connection.close()
                connection = None
            self.of[path].append(Probed(began, time.monotonic(), status))
            await asyncio.sleep(PAUSE_SECONDS)
        if connection is not None:
            connection.close()
