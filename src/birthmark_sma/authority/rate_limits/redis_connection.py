"""A connection to a Redis that may be unavailable, which must never stop the service.

`redis_store` runs its script through it; `limiter` starts and closes it. A call to Redis has a
timeout of 0.25 seconds. After a failed call, all calls raise StoreAwayError at once, without a call
to Redis, until a probe succeeds. It runs every 3 seconds. Callers then count in memory only.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

ANSWER_SECONDS = 0.25
"""The timeout of a call. A request that is queued behind one that fails waits for that one only."""

PROBE_SECONDS = 3.0
"""The time between two probes while Redis is unavailable."""
_CONNECT_SECONDS = 1.0  # longer than ANSWER_SECONDS, as a probe may have to connect first
_AT_ONCE = 16  # calls to Redis at the same time
_STEPS = 5  # see `_patience`
_PREFIX = "sma-rates"  # of all keys in Redis
_PROBE: dict[str, object] = {"rates": [[1_000_000, 1]], "used": 1, "costs": []}

_log = logging.getLogger(__name__)


class StoreAwayError(Exception):
    """Redis is unavailable. Internal to the rate limits: `limiter` catches it."""


@dataclass(slots=True)
class StoreFigures:
    """The state of Redis for the metrics, as this process sees it."""

    away: bool = False
    times_lost: int = 0


class RedisConnection:
    """The connections of one process. Owned by one event loop. Call `start` before `run`."""

    def __init__(self, url: SecretStr) -> None:
        self.figures = StoreFigures()
        self._url = url
        self._client: Redis | None = None
        self._script: AsyncScript | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._available = False

    @property
    def available(self) -> bool:
        """True if the last call to Redis succeeded."""
        return self._available

    async def start(self) -> None:
        """Connect to Redis. If it is unavailable, log that and probe it in the background.

        A URL that the library cannot use is logged too, but not tried again.
        """
        try:
            self._client = _make_client(self._url.get_secret_value())
            script = Path(__file__).with_name("windows.lua").read_text(encoding="utf-8")
            self._script = self._client.register_script(script)
        except Exception as error:  # the library cannot use the URL
            self._note_loss(error)
            return
        await self._probe()
        if not self._available:
            self.spawn(self._find_again())

    async def close(self) -> None:
        """Cancel all tasks and close the connections, within a second."""
        self._available = False  # first, so that no new task starts
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            # Redis loses nothing if the connection is not closed properly, and it may not respond.
            await asyncio.wait({asyncio.ensure_future(self._client.aclose())}, timeout=1)

    async def run(self, key: str, ask: dict[str, object]) -> Any:
        """Run `windows.lua` on one key and return its answer. Raises StoreAwayError."""
        try:
            # A timeout of its own, so that waiting for a turn does not count as a fault of Redis.
            async with _patience(ANSWER_SECONDS):
                await self._turns.acquire()
        except TimeoutError:  # too many calls are in progress; Redis may be well
            raise StoreAwayError from None
        try:
            if self._available:  # another call may have failed while this one waited
                async with _patience(ANSWER_SECONDS):
                    return await self._call(key, ask)
        # Any error at all: a rate limit must never stop the service. A cancelled request is no
        # fault of Redis: CancelledError is no Exception, so it passes.
        except Exception as error:
            if self._available:  # no other call has failed before
                self._available = False
                self._note_loss(error)
                self.spawn(self._find_again())
        finally:
            self._turns.release()
        raise StoreAwayError

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background. `close` cancels it."""
        # The event loop has weak references to tasks only: this set keeps them alive.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, key: str, ask: dict[str, object]) -> Any:
        assert self._script is not None  # noqa: S101  it has started
        return await self._script(keys=[f"{_PREFIX}:{key}"], args=[json.dumps(ask)])

    def _note_loss(self, error: Exception) -> None:
        if not self.figures.away:
            self.figures.away = True
            self.figures.times_lost += 1
            _log.warning(
                "The store for rate limits %s: until it answers, each server counts by itself",
                _fault(error),
            )

    async def _find_again(self) -> None:
        while not self._available:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Test whether Redis responds, accepts writes and is fast enough. Raise nothing."""
        try:
            async with _patience(_CONNECT_SECONDS):
                await self._call("probe", _PROBE)
            # Again with the timeout of requests, now that there is a connection.
            async with _patience(ANSWER_SECONDS):
                await self._call("probe", _PROBE)
        except Exception as error:
            self._note_loss(error)
            return
        self._available = True
        if self.figures.away:
            self.figures.away = False
            _log.warning("The store for rate limits answers again: processes count together")


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError if the body takes longer than `seconds` of the event loop's own time.

    The time is counted in 5 steps. If a busy machine stops the event loop for a while, that counts
    as one step only: the response may have arrived in that time, so Redis is not at fault.
    """
    loop = asyncio.get_running_loop()
    left = _STEPS
    step: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def pass_step() -> None:
            nonlocal left, step
            left -= 1
            if left:
                step = loop.call_later(seconds / _STEPS, pass_step)
            else:
                limit.reschedule(loop.time())

        step = loop.call_later(seconds / _STEPS, pass_step)
        try:
            yield
        finally:
            step.cancel()


def _make_client(url: str) -> "Redis":
    # Imported here, because only a server with several processes needs them.
    from redis.asyncio import Redis  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    return Redis.from_url(
        url,
        socket_timeout=_CONNECT_SECONDS,
        socket_connect_timeout=_CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 0),  # none: requests must not wait, and the probe retries
    )


def _fault(error: Exception) -> str:
    """Return the kind of a fault, for the log.

    Never log the library's own message: it may contain parts of the URL, which has a password.
    """
    kinds = {each.__name__ for each in type(error).__mro__}
    if kinds & {"AuthenticationError", "NoPermissionError", "AuthorizationError"}:
        return "refuses the name or password in SMA_RATE_STORE"
    if "ReadOnlyError" in kinds:
        return "can only be read"
    if "TimeoutError" in kinds:
        return "does not answer in time"
    if kinds & {"ConnectionError", "OSError"}:
        return "cannot be reached"
    return f"answers with an error ({type(error).__name__})"
