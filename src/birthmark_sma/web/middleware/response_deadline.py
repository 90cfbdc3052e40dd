"""Timeouts for the verdicts that requests wait for.

`web.api.validate` adds each future, and a task of the application checks all of them twice a
second. A timer per request would cost as much as opening its camera token.
"""

import asyncio
import logging
from typing import Any

from birthmark_sma.errors import DatabaseUnavailableError

_LOOK_SECONDS = 0.5  # a timeout may be this much late

_log = logging.getLogger(__name__)


class Deadlines:
    """The futures that requests wait for, and their deadlines. Owned by one event loop."""

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
