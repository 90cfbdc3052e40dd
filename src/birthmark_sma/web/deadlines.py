"""Give up waiting for answers that take too long, at next to no cost for those that do not.

A timer of its own would cost a request as much as opening its camera token. Here a request only
writes down when its answer is due, and one task looks over all of them twice a second.
"""

import asyncio
from typing import Any, TypeVar

from birthmark_sma.errors import DatabaseUnavailableError

Answer = TypeVar("Answer")

_LOOK_SECONDS = 0.5


class Deadlines:
    """The answers that are waited for, and when they are due. Owned by one event loop."""

    def __init__(self) -> None:
        self._due: dict[asyncio.Future[Any], float] = {}

    async def wait(self, future: "asyncio.Future[Answer]", seconds: float) -> Answer:
        """Wait for a future; DatabaseUnavailableError once it takes longer, to half a second."""
        self._due[future] = future.get_loop().time() + seconds
        try:
            return await future
        finally:
            del self._due[future]

    async def watch(self) -> None:
        """Look over them for ever."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for future, due in list(self._due.items()):
                if due < now() and not future.done():
                    future.set_exception(
                        DatabaseUnavailableError("The database does not answer in time")
                    )
