"""Clients of two servers: single tokens and batches, new tokens only, each token sent once.

A client that gets no verdict goes on with a new token, so every row of a token belongs to the one
request that brought it. Four fifths of the tokens are genuine, and the others are forged.
"""

import asyncio
import json
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.load import Answer, BrokenConnectionError, Connection
from tests.support.programs.running import wait_until

SINGLES = 4
"""Callers of each server that send one token in a request."""
BATCHES = 2
"""Callers of each server that send batches."""
IN_A_BATCH = 20
_FORGED = 5  # each fifth
_PAUSE_SECONDS = 0.04
_STALL_SECONDS = 0.5
_PATIENCE_SECONDS = 15.0
_START_SECONDS = 60.0


class Heard(NamedTuple):
    """What a client heard at a time of `monotonic`. The status 0 is a connection that failed."""

    at: float
    status: int
    seconds: float
    retry_after: int | None


class Load:
    """The clients, from `start` to `stop`."""

    def __init__(self, urls: Sequence[str], camera: Camera) -> None:
        self.expected: dict[bytes, str] = {}
        """The right verdict of each token that was sent, by its encrypted NUC hash."""
        self.acknowledged: dict[bytes, str] = {}
        """The verdicts that clients got."""
        self.statuses: Counter[str] = Counter()
        """The answers by their status; "none" is a connection that ended or timed out."""
        self.heard: list[Heard] = []
        """The same, one by one."""
        self._camera = camera
        self._moments: dict[str, list[float]] = defaultdict(list)
        self._streams = {
            f"{kind} at {url}": (url, size)
            for url in urls
            for kind, size in (("singles", 1), ("batches", IN_A_BATCH))
        }
        self._stalls: list[tuple[float, float]] = []
        self._began = self._ended = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)

    def start(self) -> None:
        """Start the clients, and return when each kind gets verdicts from each server."""
        self._began = time.monotonic()
        self._thread.start()
        self.wait_for_service(_START_SECONDS)
        self._began = time.monotonic()

    def wait_for_service(self, seconds: float) -> None:
        """Wait until each kind of client has got verdicts from each server, from now on."""
        now = time.monotonic()
        for stream in self._streams:
            wait_until(lambda stream=stream: self._last(stream) > now, seconds)  # type: ignore[misc]

    def served_from(self, moment: float) -> float:
        """Return when each kind of client had got a verdict from each server after a moment."""
        return max(next(at for at in each if at > moment) for each in self._moments.values())

    def stop(self) -> None:
        """Let the clients have their last answers."""
        self._ended = time.monotonic()
        self._stopping.set()
        self._thread.join(2 * _PATIENCE_SECONDS)
        assert not self._thread.is_alive()

    def seconds_without_service(self) -> float:
        """Return the longest time in which one kind of client got no verdict from one server."""
        began, ended = self._began, self._ended
        return max(
            longest_gap(
                [began, *(each for each in self._moments[stream] if began < each < ended), ended],
                self._stalls,
            )
            for stream in self._streams
        )

    async def _notice_stalls(self) -> None:
        while not self._stopping.is_set():
            before = time.monotonic()
            await asyncio.sleep(_PAUSE_SECONDS)
            after = time.monotonic()
            if after - before > _STALL_SECONDS:
                self._stalls.append((before, after))

    def _last(self, stream: str) -> float:
        return self._moments[stream][-1] if self._moments[stream] else 0.0

    async def _send(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._notice_stalls())
            for stream, (url, size) in self._streams.items():
                for _ in range(SINGLES if size == 1 else BATCHES):
                    group.create_task(self._call(stream, url, size))

    async def _call(self, stream: str, url: str, size: int) -> None:
        connection: Connection | None = None
        while not self._stopping.is_set():
            tokens = [self._new_token() for _ in range(size)]
            path, body = _request(tokens)
            began = time.monotonic()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    connection = connection or await Connection.open(url)
                    answer = await connection.ask("POST", path, body)
            except (BrokenConnectionError, TimeoutError):
                self.statuses["none"] += 1
                now = time.monotonic()
                self.heard.append(Heard(now, 0, now - began, None))
                if connection is not None:
                    connection.close()
                connection = None
            else:
                self._note(stream, tokens, answer)
            await asyncio.sleep(_PAUSE_SECONDS)
        if connection is not None:
            connection.close()

    def _new_token(self) -> CameraToken:
        forged = len(self.expected) % _FORGED == 0
        token = self._camera.token(nuc_hash=secrets.token_bytes(32) if forged else None)
        self.expected[token.encrypted_nuc_hash] = "FAIL" if forged else "PASS"
        return token

    def _note(self, stream: str, tokens: Sequence[CameraToken], answer: Answer) -> None:
        self.statuses[str(answer.status)] += 1
        self.heard.append(
            Heard(time.monotonic(), answer.status, answer.seconds, answer.retry_after)
        )
        if answer.status != 200:
            return
        self._moments[stream].append(time.monotonic())
        results = [answer.json()] if len(tokens) == 1 else answer.json()["results"]
        for token, result in zip(tokens, results, strict=True):
            self.acknowledged[token.encrypted_nuc_hash] = _verdict(result)


def _request(tokens: Sequence[CameraToken]) -> tuple[str, bytes]:
    bodies = [wire(token) for token in tokens]
    if len(bodies) == 1:
        return VALIDATE, json.dumps(bodies[0]).encode()
    return f"{VALIDATE}/batch", json.dumps({"tokens": bodies}).encode()


def _verdict(result: dict[str, Any]) -> str:
    """Return PASS or FAIL, or what is neither: an element of a batch that has an error."""
    return str(result.get("error") or result["validation_result"])


def longest_gap(moments: Sequence[float], stalls: Sequence[tuple[float, float]]) -> float:
    """Return the longest time between two moments.

    Times in which this process stood still, with their begin and end, are no fault of the servers
    and do not count.
    """

    def stood_still(begin: float, end: float) -> float:
        overlaps = (min(end, until) - max(begin, since) for since, until in stalls)
        return sum(each for each in overlaps if each > 0)

    return max(
        later - earlier - stood_still(earlier, later) for earlier, later in pairwise(moments)
    )
