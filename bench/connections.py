"""A load generator for two things that wrk cannot do: a constant rate, and bodies used only once.

It uses asyncio protocols on keep-alive connections, with one request under way on each. The
generator shares the machine with the server, so it reports its own CPU use and its own delay.
The parts `open_load`, `provisioning` and `memory` call it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.figures import percentile

_PATIENCE_SECONDS = 120
_TICK_SECONDS = 0.001

Check = Callable[[bytes], bool]
"""Returns whether the body of a response with status 200 is right."""


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load. Latencies are milliseconds from the time a request was due.

    `lag_p99_ms` is the generator's own delay, 99th percentile. `generator_cpu` is the share of one
    core that it used. If either is large, the generator was the limit and not the server.
    """

    answers: int
    wrong: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    lag_p99_ms: float
    generator_cpu: float


def at_rate(
    url: str,
    bodies: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    connections: int,
    check: Check,
) -> Load:
    """Send `rate` requests a second for `seconds`, also if the server is slower.

    The time that a request waits for a free connection counts as latency. This avoids coordinated
    omission, which makes closed loads look better than they are.
    """
    return uvloop.run(_Generator(url, bodies, check).at_rate(rate, seconds, connections))


def closed(
    url: str, bodies: Sequence[bytes], *, count: int | None = None, connections: int, check: Check
) -> Load:
    """Send `count` requests, or each body once, as fast as the server responds on `connections`."""
    return uvloop.run(_Generator(url, bodies, check).closed(count or len(bodies), connections))


class _Connection(asyncio.Protocol):
    """One keep-alive connection. It calls `answered` with head and body of each response."""

    def __init__(self, answered: Callable[["_Connection", bytes, bytes], None]) -> None:
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self.number: int | None = None  # of the request under way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, number: int, request: bytes) -> None:
        """Send a request. The response to the previous one must have arrived."""
        assert self._transport is not None
        self.number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if separator and len(body) >= _content_length(head):
            self._received = b""
            self._answered(self, head, body)

    def connection_lost(self, _error: Exception | None) -> None:
        """Count a request under way as answered without a status, so it counts as wrong."""
        if self.number is not None:
            self._answered(self, b"", b"")

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


class _Generator:
    def __init__(self, url: str, bodies: Sequence[bytes], check: Check) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 80
        head = f"POST {place.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        self._requests = [
            b"%sContent-Length: %d\r\n\r\n%s" % (head.encode(), len(body), body) for body in bodies
        ]
        self._check = check
        self._due: list[float] = []  # when each request should have left
        self._lags: list[float] = []
        self._latencies: list[float] = []
        self._wrong = 0
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._next: Callable[[], int | None] = lambda: None
        self._total = 0
        self._finished: asyncio.Future[None]

    async def at_rate(self, rate: float, seconds: float, connections: int) -> Load:
        total = round(rate * seconds)
        self._next = lambda: self._waiting.popleft() if self._waiting else None
        return await self._measured(connections, total, self._pace(rate, total))

    async def closed(self, total: int, connections: int) -> Load:
        numbers = iter(range(total))

        def following() -> int | None:
            number = next(numbers, None)
            if number is not None:
                self._due.append(time.perf_counter())
            return number

        self._next = following
        return await self._measured(connections, total, self._start_all())

    async def _measured(
        self, connections: int, total: int, driving: Coroutine[None, None, None]
    ) -> Load:
        loop = asyncio.get_running_loop()
        self._total = total
        self._finished = loop.create_future()
        opened: list[_Connection] = []
        for _ in range(connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._take_answer), self._host, self._port
            )
            opened.append(connection)
        self._idle.extend(opened)
        began, cpu_began = time.perf_counter(), time.process_time()
        await driving
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self._finished
        elapsed = time.perf_counter() - began
        cpu = time.process_time() - cpu_began
        for connection in opened:
            connection.close()
        return self._result(elapsed, cpu)

    async def _pace(self, rate: float, total: int) -> None:
        began = time.perf_counter()
        self._due = [began + number / rate for number in range(total)]
        sent = 0
        while sent < total:
            now = time.perf_counter()
            while sent < total and self._due[sent] <= now:
                self._waiting.append(sent)
                self._lags.append(now - self._due[sent])
                sent += 1
            self._send_waiting()
            if sent < total:
                # uvloop rounds a sleep down to whole milliseconds. A sleep of 0 would spin and take
                # CPU time from the server.
                await asyncio.sleep(max(_TICK_SECONDS, self._due[sent] - time.perf_counter()))

    async def _start_all(self) -> None:
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._idle:
            number = self._next()
            if number is None:
                return
            self._send(self._idle.popleft(), number)

    def _send(self, connection: _Connection, number: int) -> None:
        connection.send(number, self._requests[number % len(self._requests)])

    def _take_answer(self, connection: _Connection, head: bytes, body: bytes) -> None:
        assert connection.number is not None
        self._latencies.append(time.perf_counter() - self._due[connection.number])
        connection.number = None
        if not (head.startswith(b"HTTP/1.1 200") and self._check(body)):
            self._wrong += 1
        if len(self._latencies) == self._total:
            self._finished.set_result(None)
        elif head:  # an empty head means that the connection is lost, so it is not used again
            number = self._next()
            if number is None:
                self._idle.append(connection)
            else:
                self._send(connection, number)

    def _result(self, elapsed: float, cpu: float) -> Load:
        p50, p95, p99 = (percentile(self._latencies, each) * 1e3 for each in (50, 95, 99))
        return Load(
            answers=len(self._latencies),
            wrong=self._wrong,
            seconds=elapsed,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            lag_p99_ms=percentile(self._lags or [0.0], 99) * 1e3,
            generator_cpu=cpu / elapsed,
        )


def _content_length(head: bytes) -> int:
    before, separator, value = head.lower().partition(b"\r\ncontent-length:")
    return int(value.split(b"\r\n", 1)[0]) if separator and before else 0
