"""Sliding windows in Redis, which several processes share, and the handling of Redis outages.

Used by `limiter` and `redis_reservations`. A rate limit must never stop the service: a call to
Redis has a timeout of 0.25 seconds. After a failed call, all calls raise StoreAwayError at once,
without a call to Redis, until a probe succeeds. It runs every 3 seconds. Callers then count in
memory only.

Calls for one caller are coalesced: while one is in progress, further ones wait and are sent to
Redis together. The busier a caller, the fewer calls a request needs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pydantic import SecretStr

from birthmark_sma.authority.rate_limits.memory_store import Usage, remaining, seconds_until
from birthmark_sma.rates import Rate

if TYPE_CHECKING:
    from limits.aio.storage import RedisStorage

ANSWER_SECONDS = 0.25
"""The timeout of an operation in Redis. A request that is queued behind one that fails waits for
that one only."""

PROBE_SECONDS = 3.0
"""The time between two probes while Redis is unavailable."""
_CONNECT_SECONDS = 1.0  # longer than ANSWER_SECONDS, as a probe may have to connect first
_AT_ONCE = 16  # operations in Redis at the same time
_STEPS = 5  # see `_patience`
_PREFIX = "sma-rates"  # of all keys in Redis

_GIVE_BACK = """
local amount = math.min(tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[1]) or '0'))
if amount > 0 then
    redis.call('DECRBY', KEYS[1], amount)
end
return amount
"""
"""Reduce the count of a current window by up to an amount. KEYS[1] is its key, ARGV[1] the amount.
The library's script cannot do it: with a negative amount it makes negative counts."""

Told = TypeVar("Told")

_log = logging.getLogger(__name__)


class StoreAwayError(Exception):
    """Redis is unavailable. Internal to the rate limits: `limiter` catches it."""


@dataclass(slots=True)
class StoreFigures:
    """The state of Redis for the metrics, as this process sees it."""

    away: bool = False
    times_lost: int = 0
    times_found: int = 0


@dataclass(slots=True)
class _Wanted:
    """A waiting `take`."""

    cost: int
    answer: "asyncio.Future[tuple[int | None, Usage]]"
    """The result of `take`."""


@dataclass(slots=True)
class _Queue:
    """The calls of `take` that wait for the next operation for one caller and rate."""

    wanted: list[_Wanted] = field(default_factory=list)


class SharedWindows:
    """The windows in Redis. Owned by one event loop. Call `start` before anything else."""

    def __init__(self, url: SecretStr, figures: StoreFigures) -> None:
        self._url = url
        self._figures = figures
        self._storage: RedisStorage | None = None
        self._queues: dict[tuple[str, Rate], _Queue] = {}
        self._unsaid: dict[tuple[str, Rate], int] = {}  # units used that Redis has not counted yet
        self._unreturned: dict[tuple[str, Rate], int] = {}  # units to give back in Redis
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._available = False
        self._lost = False

    @property
    def available(self) -> bool:
        """True if the last operation in Redis succeeded."""
        return self._available

    async def start(self) -> None:
        """Connect to Redis. If it is unavailable, log that and probe it in the background.

        A URL that the library cannot use is logged too, but not tried again.
        """
        try:
            self._storage = _open_storage(self._url.get_secret_value())
        except Exception as error:  # the library cannot use the URL
            self._note_loss(error)
            return
        await self._probe()
        if not self._available:
            self._run(self._find_again())

    async def close(self) -> None:
        """Cancel all tasks and close the connections, within a second."""
        self._available = False  # first, so that no new task starts
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._storage is not None:
            # Redis loses nothing if the connection is not closed properly, and it may not respond.
            await asyncio.wait({asyncio.ensure_future(_close(self._storage))}, timeout=1)

    async def take(self, key: str, rate: Rate, cost: int) -> tuple[int | None, Usage]:
        """Consume `cost` units if they are left, and return the usage of all processes.

        The first value is None if they were consumed, else the seconds until they can be. Raises
        StoreAwayError.
        """
        if not self._available:
            raise StoreAwayError
        wanted = _Wanted(cost, asyncio.get_running_loop().create_future())
        queue = self._queues.get((key, rate))
        if queue is None:
            queue = self._queues[key, rate] = _Queue()
            self._run(self._serve(key, rate, queue))
        queue.wanted.append(wanted)
        return await wanted.answer

    def give_back(self, key: str, rate: Rate, cost: int) -> None:
        """Undo a `take` of a refused request, in a background task.

        Calls for one caller are coalesced: a flood of refused requests must not keep Redis busy.
        Do nothing if Redis is unavailable.
        """

        async def give_back(units: int) -> None:
            # The braces are part of the library's key for the current window.
            await self.run(_GIVE_BACK, f"{{{window_name(key, rate)}}}", units)

        self._coalesce(self._unreturned, (key, rate), cost, give_back)

    async def usage(self, key: str, rate: Rate) -> Usage:
        """Return the usage of all processes. Raises StoreAwayError."""
        return await self._converse(partial(self._usage, key, rate))

    def tell(self, key: str, rate: Rate, cost: int, learn: Callable[[Usage], None]) -> None:
        """Count units that were used already, in a background task.

        Then call `learn` with the usage of all processes. Do nothing if Redis is unavailable.
        """

        async def count(units: int) -> None:
            learn(await self._converse(partial(self._fill, key, rate, units)))

        self._coalesce(self._unsaid, (key, rate), cost, count)

    async def fill(self, key: str, rate: Rate, cost: int) -> Usage:
        """Count units that were used already, and return the usage. Raises StoreAwayError."""
        return await self._converse(partial(self._fill, key, rate, cost))

    async def run(self, script: str, key: str, *arguments: str | int) -> int:
        """Run a Lua script on one key and return its integer. Raises StoreAwayError."""

        async def evaluate() -> int:
            assert self._storage is not None  # noqa: S101  it has started
            # Not public, but the library offers no scripts other than its own.
            client = self._storage.bridge.get_connection()  # type: ignore[attr-defined]
            answer: int = await client.eval(script, 1, f"{_PREFIX}:{key}", *arguments)
            return answer

        return await self._converse(evaluate)

    # --- operations

    async def _serve(self, key: str, rate: Rate, queue: _Queue) -> None:
        """Process the waiting calls of a queue together, until none is left."""
        try:
            while queue.wanted:
                wanted, queue.wanted = queue.wanted, []
                await self._answer(key, rate, wanted)
        finally:
            # There is no await between the check of the loop and this line, so no call gets lost.
            # If the task was cancelled, the calls that still wait fail.
            del self._queues[key, rate]
            _disappoint(queue.wanted)

    async def _answer(self, key: str, rate: Rate, wanted: Sequence[_Wanted]) -> None:
        try:
            had, usage = await self._converse(partial(self._have, key, rate, wanted))
        except StoreAwayError:
            _disappoint(wanted)
            return
        except BaseException:  # `close` cancels this task: no call may wait for ever
            _disappoint(wanted)
            raise
        for number, each in enumerate(wanted):
            if not each.answer.done():
                wait = None if number < had else max(1, seconds_until(rate, usage, each.cost))
                each.answer.set_result((wait, usage))

    async def _have(self, key: str, rate: Rate, wanted: Sequence[_Wanted]) -> tuple[int, Usage]:
        """Consume the units of as many calls as possible, in their order.

        Return how many calls got their units, and the usage after that.
        """
        # All of them at once, which most often succeeds and takes one operation.
        if await self._acquire(key, rate, sum(each.cost for each in wanted)):
            return len(wanted), await self._usage(key, rate)
        # Otherwise those that fit, from the first on. If another process was faster, none.
        usage = await self._usage(key, rate)
        room = remaining(rate, usage)
        had = 0
        for each in wanted:
            if each.cost > room:
                break
            room -= each.cost
            had += 1
        if had and await self._acquire(key, rate, sum(each.cost for each in wanted[:had])):
            return had, await self._usage(key, rate)
        return 0, usage

    def _coalesce(
        self,
        pending: dict[tuple[str, Rate], int],
        window: tuple[str, Rate],
        cost: int,
        send: Callable[[int], Awaitable[None]],
    ) -> None:
        """Add units to those that wait for Redis; send them together in one background task."""
        if not self._available:
            return
        known = window in pending
        pending[window] = pending.get(window, 0) + cost
        if not known:
            self._run(self._send_pending(pending, window, send))

    async def _send_pending(
        self,
        pending: dict[tuple[str, Rate], int],
        window: tuple[str, Rate],
        send: Callable[[int], Awaitable[None]],
    ) -> None:
        try:
            while units := pending[window]:
                pending[window] = 0
                await send(units)
        except StoreAwayError:
            return
        finally:
            del pending[window]

    # As `Windows.fill`: counts no more than is left, because Redis refuses more than that.
    async def _fill(self, key: str, rate: Rate, cost: int) -> Usage:
        if not await self._acquire(key, rate, min(cost, rate.amount)):
            left = remaining(rate, await self._usage(key, rate))
            if left:
                await self._acquire(key, rate, min(cost, left))
        return await self._usage(key, rate)

    async def _acquire(self, key: str, rate: Rate, cost: int) -> bool:
        assert self._storage is not None  # noqa: S101  it has started
        return await self._storage.acquire_sliding_window_entry(
            window_name(key, rate), rate.amount, rate.seconds, cost
        )

    async def _usage(self, key: str, rate: Rate) -> Usage:
        assert self._storage is not None  # noqa: S101
        previous, previous_left, current, current_left = await self._storage.get_sliding_window(
            window_name(key, rate), rate.seconds
        )
        # The library's times are until a key expires, and a key lives for two windows: in the
        # second one it is the previous window. `Usage.left` is until the current window ends.
        left = current_left - rate.seconds if current_left else previous_left
        return Usage(previous, current, min(max(left, 0.0), float(rate.seconds)))

    # --- outages

    # Every operation goes through here. A cancelled request is no fault of Redis:
    # CancelledError is no Exception, so it passes.
    async def _converse(self, conversation: Callable[[], Awaitable[Told]]) -> Told:
        try:
            # A timeout of its own, so that waiting for a turn does not count as a fault of Redis.
            async with _patience(ANSWER_SECONDS):
                await self._turns.acquire()
        except TimeoutError:  # too many operations are in progress; Redis may be well
            raise StoreAwayError from None
        try:
            if self._available:  # another operation may have failed while this one waited
                async with _patience(ANSWER_SECONDS):
                    return await conversation()
        except Exception as error:
            # Any error at all: a rate limit must never stop the service.
            self._lose(error)
        finally:
            self._turns.release()
        raise StoreAwayError

    def _lose(self, error: Exception) -> None:
        if not self._available:
            return  # another operation has failed before
        self._available = False
        self._note_loss(error)
        self._run(self._find_again())

    def _note_loss(self, error: Exception) -> None:
        if self._lost:
            return
        self._lost = True
        self._figures.away = True
        self._figures.times_lost += 1
        _log.warning(
            "The store for rate limits %s: until it answers, each process counts by itself",
            _fault(error),
        )

    async def _find_again(self) -> None:
        while not self._available:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Test whether Redis responds, accepts writes and is fast enough. Raise nothing."""
        assert self._storage is not None  # noqa: S101
        try:
            async with _patience(_CONNECT_SECONDS):
                await self._acquire("probe", _PROBE_RATE, 1)
            # Again with the timeout of requests, now that there is a connection.
            async with _patience(ANSWER_SECONDS):
                await self._acquire("probe", _PROBE_RATE, 1)
        except Exception as error:
            self._note_loss(error)
            return
        self._available = True
        if self._lost:
            self._lost = False
            self._figures.away = False
            self._figures.times_found += 1
            _log.warning("The store for rate limits answers again: processes count together")

    def _run(self, work: Awaitable[None]) -> None:
        # The event loop has weak references to tasks only: this set keeps them alive.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_PROBE_RATE = Rate(1_000_000, 1)


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


def window_name(key: str, rate: Rate) -> str:
    """Return the name in Redis of a caller's window under one rate."""
    return f"{key}/{rate.amount}/{rate.seconds}"


def _disappoint(wanted: Sequence[_Wanted]) -> None:
    for each in wanted:
        if not each.answer.done():
            each.answer.set_exception(StoreAwayError())


def _open_storage(url: str) -> "RedisStorage":
    # Imported here, because only a server with several processes needs them.
    from limits.aio.storage import RedisStorage  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    options: dict[str, object] = {
        "socket_timeout": _CONNECT_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # none: requests must not wait, and the probe retries
    }
    return RedisStorage(f"async+{url}", implementation="redispy", key_prefix=_PREFIX, **options)  # type: ignore[arg-type]


async def _close(storage: "RedisStorage") -> None:
    await storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]


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
