"""Sliding windows in Redis, which several processes share; and what happens while it is away.

A rate limit must never stop the service. Redis is asked with little patience. Once it does not
answer as it should, nobody asks it any more but a probe every few seconds, and callers of this
module are told to count by themselves.

What arrives for one caller while a question about it is under way goes into the next question
together: the busier the caller, the fewer questions a request.
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
"""How long a conversation with Redis may take. A request that arrives during a conversation that
fails waits for that one alone."""

PROBE_SECONDS = 3.0
_CONNECT_SECONDS = 1.0
_AT_ONCE = 16
_STEPS = 5
_PREFIX = "sma-rates"

Told = TypeVar("Told")

_log = logging.getLogger(__name__)


class StoreAwayError(Exception):
    """Redis cannot be asked now. Never leaves this room."""


@dataclass(slots=True)
class StoreFigures:
    """How the store is doing, for whoever watches. In this process."""

    away: bool = False
    times_lost: int = 0
    times_found: int = 0


@dataclass(slots=True)
class _Wanted:
    """Units that somebody waits for; None where they were had, else in how many seconds."""

    cost: int
    answer: "asyncio.Future[tuple[int | None, Usage]]"


@dataclass(slots=True)
class _Queue:
    """What waits for one caller's next conversation."""

    wanted: list[_Wanted] = field(default_factory=list)


class SharedWindows:
    """The windows in Redis. Owned by one event loop; begun by `start`."""

    def __init__(self, url: SecretStr, figures: StoreFigures) -> None:
        self._url = url
        self._figures = figures
        self._storage: RedisStorage | None = None
        self._queues: dict[tuple[str, Rate], _Queue] = {}
        self._unsaid: dict[tuple[str, Rate], int] = {}  # what happened, and Redis does not know yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._available = False
        self._lost = False

    @property
    def available(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._available

    async def start(self) -> None:
        """Ask Redis for the first time, and go on asking until it answers."""
        try:
            self._storage = _open_storage(self._url.get_secret_value())
        except Exception as error:  # a URL whose parts make no sense to the library
            self._note_loss(error)
            return
        await self._probe()
        if not self._available:
            self._run(self._find_again())

    async def close(self) -> None:
        """Ask nothing more."""
        self._available = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._storage is not None:
            # Closing says nothing that Redis needs to hear: it may be away.
            await asyncio.wait({asyncio.ensure_future(_close(self._storage))}, timeout=1)

    async def take(self, key: str, rate: Rate, cost: int) -> tuple[int | None, Usage]:
        """Have so many units, if they are there, and say what has been had by all.

        Returns None for units that were had, or in how many seconds they can be. Raises
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

    async def usage(self, key: str, rate: Rate) -> Usage:
        """Say what has been had. Raises StoreAwayError."""
        return await self._converse(partial(self._usage, key, rate))

    def tell(self, key: str, rate: Rate, cost: int, learn: Callable[[Usage], None]) -> None:
        """Count what has happened already, while nobody waits; `learn` is told what that makes."""
        if not self._available:
            return
        known = (key, rate) in self._unsaid
        self._unsaid[key, rate] = self._unsaid.get((key, rate), 0) + cost
        if not known:
            self._run(self._tell(key, rate, learn))

    async def fill(self, key: str, rate: Rate, cost: int) -> Usage:
        """Count what has happened already, and say what that makes. Raises StoreAwayError."""
        return await self._converse(partial(self._fill, key, rate, cost))

    async def run(self, script: str, key: str, *arguments: str | int) -> int:
        """Run a script on one key; it returns an integer. Raises StoreAwayError."""

        async def evaluate() -> int:
            assert self._storage is not None  # noqa: S101  it has started
            client = self._storage.bridge.get_connection()  # type: ignore[attr-defined]
            answer: int = await client.eval(script, 1, f"{_PREFIX}:{key}", *arguments)
            return answer

        return await self._converse(evaluate)

    # --- conversations

    async def _serve(self, key: str, rate: Rate, queue: _Queue) -> None:
        """Answer what waits, together, until nothing does."""
        try:
            while queue.wanted:
                wanted, queue.wanted = queue.wanted, []
                await self._answer(key, rate, wanted)
        finally:
            del self._queues[key, rate]
            _disappoint(queue.wanted)

    async def _answer(self, key: str, rate: Rate, wanted: Sequence[_Wanted]) -> None:
        try:
            had, usage = await self._converse(partial(self._have, key, rate, wanted))
        except StoreAwayError:
            _disappoint(wanted)
            return
        except BaseException:
            _disappoint(wanted)
            raise
        for number, each in enumerate(wanted):
            if not each.answer.done():
                wait = None if number < had else max(1, seconds_until(rate, usage, each.cost))
                each.answer.set_result((wait, usage))

    async def _have(self, key: str, rate: Rate, wanted: Sequence[_Wanted]) -> tuple[int, Usage]:
        """Return how many of them got their units, from the first on, and what that makes."""
        if await self._acquire(key, rate, sum(each.cost for each in wanted)):
            return len(wanted), await self._usage(key, rate)
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

    async def _tell(self, key: str, rate: Rate, learn: Callable[[Usage], None]) -> None:
        try:
            while cost := self._unsaid[key, rate]:
                self._unsaid[key, rate] = 0
                learn(await self._converse(partial(self._fill, key, rate, cost)))
        except StoreAwayError:
            return
        finally:
            del self._unsaid[key, rate]

    async def _fill(self, key: str, rate: Rate, cost: int) -> Usage:
        if not await self._acquire(key, rate, min(cost, rate.amount)):
            left = remaining(rate, await self._usage(key, rate))
            if left:
                await self._acquire(key, rate, min(cost, left))
        return await self._usage(key, rate)

    async def _acquire(self, key: str, rate: Rate, cost: int) -> bool:
        assert self._storage is not None  # noqa: S101  it has started
        return await self._storage.acquire_sliding_window_entry(
            _name(key, rate), rate.amount, rate.seconds, cost
        )

    async def _usage(self, key: str, rate: Rate) -> Usage:
        assert self._storage is not None  # noqa: S101
        previous, previous_left, current, current_left = await self._storage.get_sliding_window(
            _name(key, rate), rate.seconds
        )
        # Redis keeps a window for two: the second time it is the one before.
        left = current_left - rate.seconds if current_left else previous_left
        return Usage(previous, current, min(max(left, 0.0), float(rate.seconds)))

    # --- losing and finding it

    async def _converse(self, conversation: Callable[[], Awaitable[Told]]) -> Told:
        try:
            async with _patience(ANSWER_SECONDS):
                await self._turns.acquire()
        except TimeoutError:  # there are more questions than Redis is asked at once
            raise StoreAwayError from None
        try:
            if self._available:
                async with _patience(ANSWER_SECONDS):
                    return await conversation()
        except Exception as error:
            # Whatever a store does wrong, callers are not to suffer for it.
            self._lose(error)
        finally:
            self._turns.release()
        raise StoreAwayError

    def _lose(self, error: Exception) -> None:
        if not self._available:
            return  # somebody else found out first
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
        """See whether Redis answers, can be written to, and is quick enough."""
        assert self._storage is not None  # noqa: S101
        try:
            async with _patience(_CONNECT_SECONDS):
                await self._acquire("probe", _PROBE_RATE, 1)
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
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_PROBE_RATE = Rate(1_000_000, 1)


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError once the body has waited for so long.

    The time passes in steps of the event loop. A pause of the loop, on a machine that is too busy,
    counts as one step: the answer may have arrived meanwhile, and Redis is not to blame.
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


def _name(key: str, rate: Rate) -> str:
    return f"{key}/{rate.amount}/{rate.seconds}"


def _disappoint(wanted: Sequence[_Wanted]) -> None:
    for each in wanted:
        if not each.answer.done():
            each.answer.set_exception(StoreAwayError())


def _open_storage(url: str) -> "RedisStorage":
    # Only a server with several processes needs them.
    from limits.aio.storage import RedisStorage  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    options: dict[str, object] = {
        "socket_timeout": _CONNECT_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    return RedisStorage(f"async+{url}", implementation="redispy", key_prefix=_PREFIX, **options)  # type: ignore[arg-type]


async def _close(storage: "RedisStorage") -> None:
    await storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]


def _fault(error: Exception) -> str:
    """Say what kind of fault it is. The library's own words may hold parts of the URL."""
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
