"""Ask the database in a thread, and no longer than a caller should wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import TypeVar

from birthmark_sma.errors import DatabaseUnavailableError

Result = TypeVar("Result")


async def asked(threads: Executor, question: Callable[[], Result], seconds: float) -> Result:
    """Ask the database in a thread. One that hangs is as unavailable as one that is gone."""
    try:
        async with asyncio.timeout(seconds):
            loop = asyncio.get_running_loop()
            # With the context, which names the request to the log.
            return await loop.run_in_executor(threads, copy_context().run, question)
    except TimeoutError:
        raise DatabaseUnavailableError("The database does not answer in time") from None
