"""Timeouts: of database queries, which run in threads, and of the verdicts that requests wait for.

The endpoints and the dashboard use `run_with_timeout` on the WorkerPools of the server;
`web.server_state` uses `SharedQuery`, `web.api.app` uses `GatheredQuery`, and `web.api.prometheus`
uses `MetricsCache`. A query whose result no one waits for any more is ended
(`storage.interruption`), so that it does not keep a thread and the database busy.
`web.api.validate` adds its futures to `Deadlines`.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from birthmark_sma.errors import DatabaseUnavailableError, PoolFullError, ShuttingDownError
from birthmark_sma.storage.interruption import CURRENT, Interruption

Parameters = ParamSpec("Parameters")
Key = TypeVar("Key")
Result = TypeVar("Result")

_MOST_KEYS = 2_000  # of a gathered query
_LOOK_SECONDS = 0.5  # a verdict's timeout may be this much late
FRESH_SECONDS = 0.5  # the maximum age of the text of /metrics
_DATABASE_SECONDS = 4.0  # the timeout of its query

_log = logging.getLogger(__name__)


async def run_with_timeout(
    threads: Executor, question: Callable[[], Result], seconds: float
) -> Result:
    """Run `question` in one of `threads` and return its result.

    Raises DatabaseUnavailableError after `seconds`, PoolFullError if too many queries wait for a
    thread, and everything that `question` raises. After a timeout or a cancellation, a query that
    waits is never started, and the SQL statement of a running one is interrupted.
    """
    future, interruption = put(threads, question)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise DatabaseUnavailableError("The database does not answer in time") from None
    finally:
        abandon(future, interruption)


def put(threads: Executor, question: Callable[[], Result]) -> "tuple[Future[Result], Interruption]":
    """Submit `question`, and return its future and the means to interrupt it.

    Raises PoolFullError or ShuttingDownError.
    """
    interruption = Interruption()
    # The thread gets a copy of this context, so that its log records name the request. The
    # interruption is set in the copy alone.
    context = copy_context()
    context.run(CURRENT.set, interruption)
    return threads.submit(context.run, question), interruption


def abandon(future: "Future[Result]", interruption: Interruption) -> None:
    """Cancel a query that has not begun, or interrupt one that runs. Do nothing if it is done."""
    if not future.done() and not future.cancel():
        interruption.interrupt()


class SharedQuery(Generic[Result]):
    """A query that concurrent requests share. Owned by the event loop.

    A request uses only the result of a query that began after the request arrived: an earlier query
    may have returned what another process has replaced since. `last_known` returns an older result,
    or None, while the database is away.
    """

    def __init__(
        self,
        threads: Executor,
        question: Callable[[], Result],
        last_known: Callable[[], Result | None],
        seconds: float,
    ) -> None:
        self._threads = threads
        self._question = question
        self._last_known = last_known
        self._seconds = seconds
        self._turn = asyncio.Lock()  # held during a query; guards the fields below
        self._begun = 0  # the number of the newest query
        self._finished = 0  # the number of the newest query that has a result
        self._found: Result | None = None

    async def read(self) -> Result | None:
        """Return the result, or an older one while the database is away.

        Raises DatabaseUnavailableError if there is no older result, and PoolFullError.
        """
        # Read before the lock: a query with a higher number began after this request arrived.
        begun_before = self._begun
        async with self._turn:
            if self._finished > begun_before:
                return self._found
            self._begun = number = self._begun + 1  # before the query, not after it
            try:
                self._found = await run_with_timeout(self._threads, self._question, self._seconds)
            except DatabaseUnavailableError:
                self._found = self._last_known()
                if self._found is None:
                    raise
            self._finished = number
            return self._found


class GatheredQuery(Generic[Key, Result]):
    """A query by key that concurrent requests share: one runs at a time, for all keys that wait.

    `question` takes the keys, and returns the results by key. Owned by the event loop.
    """

    def __init__(
        self,
        threads: Executor,
        question: Callable[[Collection[Key]], Mapping[Key, Result]],
        seconds: float,
    ) -> None:
        self._threads = threads
        self._question = question
        self._seconds = seconds
        self._keys: set[Key] = set()
        self._batch: asyncio.Future[Mapping[Key, Result]] | None = None
        self._running: asyncio.Task[None] | None = None

    async def read(self, keys: Collection[Key]) -> Mapping[Key, Result]:
        """Return the results of a query that begins after this call, also those of other keys.

        Raises PoolFullError if 2,000 keys wait, and whatever `question` raises.
        """
        if len(self._keys) + len(keys) > _MOST_KEYS:
            raise PoolFullError
        self._keys.update(keys)
        if self._batch is None:
            self._batch = asyncio.get_running_loop().create_future()
        batch = self._batch
        if self._running is None:
            # In a context of its own: the query works for many requests, not for the first one.
            self._running = asyncio.create_task(self._run(), context=Context())
        return await asyncio.shield(batch)  # other requests wait for it, too

    async def _run(self) -> None:
        while self._batch is not None:
            question, batch = partial(self._question, self._keys), self._batch
            self._keys, self._batch = set(), None
            try:
                found = await run_with_timeout(self._threads, question, self._seconds)
            except Exception as error:
                batch.set_exception(error)
                batch.exception()  # it counts as retrieved if no request waits any more
            else:
                batch.set_result(found)
        self._running = None


class MetricsCache(Generic[Result]):
    """A cache of the /metrics text, so that frequent scrapes cost no more than rare ones.

    The text is made at most twice a second, and concurrent scrapes share one. While a query hangs,
    no second one is started: the text is made without the database's metrics. Owned by one event
    loop.

    `ask` queries the database, in `thread`, an executor with just one thread. It may raise
    DatabaseUnavailableError. `phrase` formats the result, or None if the database is away.
    """

    def __init__(
        self, thread: Executor, ask: Callable[[], Result], phrase: Callable[[Result | None], bytes]
    ) -> None:
        self._thread = thread
        self._ask = ask
        self._phrase = phrase
        self._text = b""
        self._made = float("-inf")
        self._making: asyncio.Task[bytes] | None = None
        self._asked: Future[Result] | None = None

    async def text(self) -> bytes:
        """Return the text, at most FRESH_SECONDS old. Never raises DatabaseUnavailableError."""
        if asyncio.get_running_loop().time() - self._made < FRESH_SECONDS:
            return self._text
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        # Other scrapes may wait for the same task. One that is cancelled must not cancel it.
        return await asyncio.shield(self._making)

    async def text_for_server(self) -> bytes:
        """Return the text for the server's own use: the next scrape gets another one.

        Otherwise a scrape might get numbers from before what its caller has just done.
        """
        text = await self.text()
        self._made = float("-inf")
        return text

    async def _make(self) -> bytes:
        try:
            self._text = self._phrase(await self._totals())
            self._made = asyncio.get_running_loop().time()
            return self._text
        finally:
            self._making = None

    async def _totals(self) -> Result | None:
        """Return the totals from the database, or None if they cannot be read in 4 seconds."""
        if self._asked is not None and not self._asked.done():
            return None  # the query of an earlier scrape still hangs
        self._asked, interruption = put(self._thread, self._ask)
        try:
            async with asyncio.timeout(_DATABASE_SECONDS):
                return await asyncio.wrap_future(self._asked)
        except (TimeoutError, DatabaseUnavailableError):
            return None
        except Exception:  # /metrics must answer when something is wrong: alerts depend on it
            _log.exception("the figures of the database could not be read")
            return None
        finally:
            abandon(self._asked, interruption)


class _Work(NamedTuple):
    future: "Future[Any]"
    call: Callable[[], Any]


class WorkerPool(Executor):
    """An executor with `threads` daemon threads and a queue of at most `most_waiting` calls.

    The queue of `concurrent.futures.ThreadPoolExecutor` is unbounded, and the interpreter waits for
    all its threads at exit, even if the database never answers one of them.
    """

    def __init__(self, threads: int, name: str, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = False
        # A call that is queued behind the threads' end marks would never be answered.
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        fn: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> "Future[Result]":
        """Queue a call and return its future. Raises PoolFullError or ShuttingDownError at once."""
        future: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise ShuttingDownError
            if self._waiting.qsize() >= self._most_waiting:
                raise PoolFullError
            self._waiting.put(_Work(future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Accept no more calls; the threads end after the queued calls. Never waits.

        Overrides Executor's method, and ignores its arguments.
        """
        with self._lock:
            self._closed = True
            # The queue is FIFO, so each thread meets its None after all queued calls.
            for _ in self._threads:
                self._waiting.put(None)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                result = work.call()
            except BaseException as error:  # the caller gets every error, as in ThreadPoolExecutor
                work.future.set_exception(error)
            else:
                work.future.set_result(result)
            del work  # so that an idle thread does not keep the last call and its result in memory


class Deadlines:
    """The futures that requests wait for, and their deadlines. Owned by one event loop.

    A task checks all of them twice a second. A timer per request would cost as much as opening its
    camera token.
    """

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._due: list[tuple[float, asyncio.Future[Any]]] = []

    def add(self, future: "asyncio.Future[Any]", seconds: float) -> None:
        """Make a future raise DatabaseUnavailableError if it is not done after `seconds`.

        The error may come up to half a second later.
        """
        self._due.append((self._time() + seconds, future))

    async def watch(self) -> None:
        """Check all futures twice a second, until this task is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for future in self._take_overdue():
                _end(future)

    def _take_overdue(self) -> "list[asyncio.Future[Any]]":
        now = self._time()
        # Finished futures are removed here and not when they finish, which would cost a search.
        waiting = [(due, future) for due, future in self._due if not future.done()]
        self._due = [(due, future) for due, future in waiting if due >= now]
        return [future for due, future in waiting if due < now]


def _end(future: "asyncio.Future[Any]") -> None:
    try:
        future.set_exception(DatabaseUnavailableError("The database does not answer in time"))
    except Exception:  # an error must not end the watch: it would end the timeouts of all requests
        _log.exception("a request that waited too long could not be answered")
