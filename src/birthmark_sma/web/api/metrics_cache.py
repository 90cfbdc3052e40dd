"""A cache of the /metrics text, so that frequent scrapes cost no more than rare ones.

`web.api.prometheus` uses it. The text is made at most twice a second, and concurrent scrapes share
one. One thread queries the database. While a query hangs, no second one is started: the text is
made without the database's metrics.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web.middleware.timeouts import abandon, put

FRESH_SECONDS = 0.5  # the maximum age of a text
_DATABASE_SECONDS = 4.0  # the timeout of a query

Totals = TypeVar("Totals")

_log = logging.getLogger(__name__)


class MetricsCache(Generic[Totals]):
    """The cached text of one process. Owned by its event loop.

    `ask` queries the database, in `thread`, an executor with just one thread. It may raise
    DatabaseUnavailableError. `phrase` formats the result, or None if the database is away.
    """

    def __init__(
        self, thread: Executor, ask: Callable[[], Totals], phrase: Callable[[Totals | None], bytes]
    ) -> None:
        self._thread = thread
        self._ask = ask
        self._phrase = phrase
        self._text = b""
        self._made = float("-inf")
        self._making: asyncio.Task[bytes] | None = None
        self._asked: Future[Totals] | None = None

    async def text(self) -> bytes:
        """Return the text, at most FRESH_SECONDS old. Never raises DatabaseUnavailableError."""
        if asyncio.get_running_loop().time() - self._made < FRESH_SECONDS:
            return self._text
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        # Other scrapes may wait for the same task. One that is cancelled must not cancel it.
        return await asyncio.shield(self._making)

    async def _make(self) -> bytes:
        try:
            self._text = self._phrase(await self._totals())
            self._made = asyncio.get_running_loop().time()
            return self._text
        finally:
            self._making = None

    async def _totals(self) -> Totals | None:
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
