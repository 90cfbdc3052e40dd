"""Run a blocking database query in a thread, with a timeout.

The endpoints and the dashboard use `run_with_timeout`; `web.api.crl` uses `SharedQuery`, and
`web.api.metrics_cache` uses `put` and `abandon`. A query whose result no one waits for any more is
ended (`storage.interruption`), so that it does not keep a thread and the database busy.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import Generic, TypeVar

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.interruption import CURRENT, Interruption

Result = TypeVar("Result")


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
