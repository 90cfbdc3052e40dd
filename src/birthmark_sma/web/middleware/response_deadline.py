"""Give up waiting for answers that take too long, at next to no cost for those that do not.

A timer of its own would cost a request as much as opening its camera token. Here a request only
writes down when its answer is due, and one task looks over all of them twice a second.
"""

import asyncio
from typing import Any

from birthmark_sma.errors import DatabaseUnavailableError

_LOOK_SECONDS = 0.5


class Deadlines:
    """The answers that are waited for, and when they are due. Owned by one event loop."""

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._due: list[tuple[float, asyncio.Future[Any]]] = []

    def add(self, future: "asyncio.Future[Any]", seconds: float) -> None:
        """Let a future raise DatabaseUnavailableError once it takes longer, to half a second."""
        self._due.append((self._time() + seconds, future))

    async def watch(self) -> None:
        """Look over them for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._time()
            self._due = [(due, future) for due, future in self._due if not future.done()]
            for due, future in self._due:
                if due < now:
                    future.set_exception(
                        DatabaseUnavailableError("The database does not answer in time")
                    )
