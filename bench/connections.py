"""A load generator for two things that wrk cannot do: a constant rate, and bodies used only once.

It keeps connections open, with one request under way on each. It shares the machine with the
server, so it reports its own CPU use and its own delay. The parts `open_load`, `provisioning` and
`memory` call it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from bench.figures import percentile
from tests.support.programs.load import BrokenConnectionError, Connection

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
    due = [number / rate for number in range(round(rate * seconds))]
    return uvloop.run(_load(url, bodies, due, connections, check))


def closed(
    url: str, bodies: Sequence[bytes], *, count: int | None = None, connections: int, check: Check
) -> Load:
    """Send `count` requests, or each body once, as fast as the server responds on `connections`."""
    return uvloop.run(_load(url, bodies, [None] * (count or len(bodies)), connections, check))


async def _load(
    url: str,
    bodies: Sequence[bytes],
    offsets: Sequence[float | None],
    connections: int,
    check: Check,
) -> Load:
    """Send a request for each offset: that many seconds after the start, or at once for None."""
    path = urlsplit(url).path
    waiting = iter(enumerate(offsets))
    latencies: list[float] = []
    lags = [0.0]
    right = 0

    async def work(connection: Connection) -> None:
        nonlocal right
        for number, offset in waiting:
            due = time.perf_counter() if offset is None else began + offset
            if due > time.perf_counter():
                await _sleep_until(due)
                lags.append(time.perf_counter() - due)
            try:
                answer = await connection.ask("POST", path, bodies[number % len(bodies)])
                right += answer.status == 200 and check(answer.body)
            except BrokenConnectionError:
                return  # the other connections send the rest
            finally:
                latencies.append(time.perf_counter() - due)
        connection.close()

    opened = [await Connection.open(url) for _ in range(connections)]
    began, cpu_began = time.perf_counter(), time.process_time()
    async with (
        asyncio.timeout(_PATIENCE_SECONDS + (offsets[-1] or 0)),
        asyncio.TaskGroup() as group,
    ):
        for each in opened:
            group.create_task(work(each))
    elapsed = time.perf_counter() - began
    p50, p95, p99 = (percentile(latencies, each) * 1e3 for each in (50, 95, 99))
    return Load(
        answers=len(latencies),
        wrong=len(offsets) - right,
        seconds=elapsed,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        lag_p99_ms=percentile(lags, 99) * 1e3,
        generator_cpu=(time.process_time() - cpu_began) / elapsed,
    )


async def _sleep_until(due: float) -> None:
    # uvloop rounds a sleep down to whole milliseconds. A sleep of 0 would spin and take CPU time
    # from the server.
    while (left := due - time.perf_counter()) > 0:
        await asyncio.sleep(max(_TICK_SECONDS, left))
