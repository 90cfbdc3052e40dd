"""Evaluate the conditions every 15 seconds, from the same text that Prometheus gets.

`web.api.app` starts one watch in each process; the health page of the dashboard reads it. It tells
nobody else: whoever must be woken needs Prometheus, which also sees a server that is gone. An error
here must never end the watch, nor keep requests waiting: the text is parsed in a thread.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

from birthmark_sma.web.conditions.samples import History, Labels, Snapshot, parse_snapshot
from birthmark_sma.web.conditions.table import CONDITIONS, Condition
from birthmark_sma.web.middleware.timeouts import put

EVERY_SECONDS = 15.0


def _find_wanted() -> dict[str, dict[str, str]]:
    """Return the samples that the expressions name, with the label that all of them ask for.

    A histogram has a sample for each route and bound: to keep those of one route saves megabytes.
    """
    selector = re.compile(r'\b(sma_\w+)(?:\{(\w+)="([^"]*)"\})?')
    wanted: dict[str, dict[str, str]] = {}
    for each in CONDITIONS:
        for name, label, value in selector.findall(each.expression):
            labels = {label: value} if label else {}
            wanted[name] = labels if wanted.get(name, labels) == labels else {}
    return wanted | {"sma_queue_items": {}}  # the health page shows both writers


WANTED = _find_wanted()

_log = logging.getLogger(__name__)


class HeldCondition(NamedTuple):
    """A condition that holds, since a Unix time. It fires once it has held for long enough."""

    condition: Condition
    labels: Sequence[str]
    since: float
    fires: bool

    @property
    def summary(self) -> str:
        """Return a sentence for people."""
        return self.condition.summarize(self.labels)


class ConditionWatch:
    """The conditions that hold, as of the last evaluation. Owned by one event loop."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], thread: Executor) -> None:
        """Evaluate the text that `read` returns, in a thread."""
        self._read = read
        self._thread = thread
        self._history = History()
        self._known: dict[Labels, Labels] = {}
        self._since: dict[str, float] = {}
        self.held: Sequence[HeldCondition] = ()
        self.newest: Snapshot | None = None
        """The samples of the last evaluation, None before the first one."""

    async def watch(self) -> None:
        """Evaluate every 15 seconds, until cancelled."""
        is_failing = False
        while True:
            try:
                await self.evaluate(time.time())
                is_failing = False
            except Exception:
                if not is_failing:
                    _log.exception("the conditions could not be evaluated: trying every 15 seconds")
                is_failing = True
            await asyncio.sleep(EVERY_SECONDS)

    async def evaluate(self, now: float) -> None:
        """Read the metrics and evaluate all conditions, at a Unix time."""
        text = await self._read()
        future, _ = put(
            self._thread, partial(parse_snapshot, text.decode(), now, WANTED, self._known)
        )
        self.newest = await asyncio.wrap_future(future)
        self._history.add(self.newest)
        self.held = [each for each in map(self._hold, CONDITIONS) if each is not None]

    def _hold(self, condition: Condition) -> HeldCondition | None:
        labels = () if condition.check is None else condition.check(self._history)
        now = self._history.time
        if not labels:
            self._since.pop(condition.name, None)
            return None
        # A clock that was set back must not make the condition look as if it began in the future.
        since = min(self._since.get(condition.name, now), now)
        self._since[condition.name] = since
        return HeldCondition(condition, labels, since, fires=now - since >= condition.seconds)
