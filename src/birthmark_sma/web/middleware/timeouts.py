"""Run a blocking database query in a thread, with a timeout.

The endpoints and the dashboard use `run_with_timeout`; `web.api.metrics_cache` uses `put` and
`abandon`. A query whose result no one waits for any more is ended (`storage.interruption`), so that
it does not keep a thread and the database busy.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import TypeVar

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
