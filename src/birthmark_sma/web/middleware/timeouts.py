"""Ask the database in a thread, and no longer than a caller waits."""

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
    """Ask the database in a thread. One that hangs is as unavailable as one that is gone.

    Once nobody waits, because the time is over or the request was cancelled, a question that has
    not begun never does, and the statement under way ends. Raises PoolFullError where too many
    questions wait.
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
    """Put a question, in this context, which names the request to the log."""
    interruption = Interruption()
    context = copy_context()
    context.run(CURRENT.set, interruption)
    return threads.submit(context.run, question), interruption


def abandon(future: "Future[Result]", interruption: Interruption) -> None:
    """End the work on a question, unless it is answered."""
    if not future.done() and not future.cancel():
        interruption.interrupt()
