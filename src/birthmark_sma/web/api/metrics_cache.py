"""Answer whoever scrapes, at a cost that does not grow with how often they ask.

The text is made at most twice a second, and once for all who ask meanwhile. The database is asked
by one thread: where it hangs, nobody asks it a second time before it has answered the first.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web.middleware.timeouts import abandon, put

FRESH_SECONDS = 0.5
_DATABASE_SECONDS = 4.0

Totals = TypeVar("Totals")

_log = logging.getLogger(__name__)


class MetricsCache(Generic[Totals]):
    """What is told to scrapers of one process; owned by its event loop.

    `ask` asks the database, in the thread of an executor that has just one, and raises
    DatabaseUnavailableError; `phrase` makes a text of what it said, or of None.
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
        """Return a text that is at most half a second old."""
        if asyncio.get_running_loop().time() - self._made < FRESH_SECONDS:
            return self._text
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        return await asyncio.shield(self._making)  # one who leaves spoils nothing for the others

    async def _make(self) -> bytes:
        try:
            self._text = self._phrase(await self._totals())
            self._made = asyncio.get_running_loop().time()
            return self._text
        finally:
            self._making = None

    async def _totals(self) -> Totals | None:
        """Return what the database says; None where it is away, which is a figure too."""
        if self._asked is not None and not self._asked.done():
            return None  # it has hung since an earlier scrape
        self._asked, interruption = put(self._thread, self._ask)
        try:
            async with asyncio.timeout(_DATABASE_SECONDS):
                return await asyncio.wrap_future(self._asked)
        except (TimeoutError, DatabaseUnavailableError):
            return None
        except Exception:  # whoever is to raise the alarm must not fail along with the database
            _log.exception("the figures of the database could not be read")
            return None
        finally:
            abandon(self._asked, interruption)
