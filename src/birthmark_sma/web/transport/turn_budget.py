"""Limit the work of one turn of the event loop, so that a liveness probe never waits for long.

The loop reads all connections that have data, then runs a task for each of their requests. With
thousands of busy connections such a turn takes hundreds of milliseconds, and a probe that arrives
in it waits for the turn and for the next one. With this limit the tasks of the other requests wait,
in the order of their arrival, while the loop looks for new data after every few of them.
`transport.protocol` calls `enter` for each request except a liveness probe.
"""

import asyncio
from collections import deque

_MOST_IN_A_TURN = 64
"""About 10 ms of requests with one camera token each."""
_BYTES_OF_ONE = 4_096
"""A larger body counts as several requests: a batch of 1,000 tokens takes a turn of its own."""


class TurnBudget:
    """The requests of one event loop that may begin in the present turn. The loop owns it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = _MOST_IN_A_TURN
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._is_counting = False  # a callback will renew the budget

    async def enter(self, body_bytes: int) -> None:
        """Return at once, or in a later turn if this one is used up."""
        cost = 1 + body_bytes // _BYTES_OF_ONE
        if not self._is_counting:
            self._is_counting = True
            self._loop.call_soon(self._renew)
        elif self._left <= 0 or self._waiting:
            future = self._loop.create_future()
            self._waiting.append((future, cost))
            await future  # `_renew` takes the cost
            return
        self._left -= cost

    def _renew(self) -> None:
        """Begin a turn: let those begin that have waited."""
        self._left = _MOST_IN_A_TURN
        while self._waiting and self._left > 0:
            future, cost = self._waiting.popleft()
            if not future.done():  # its caller may have left
                future.set_result(None)
                self._left -= cost
        self._is_counting = self._left < _MOST_IN_A_TURN
        if self._is_counting:
            self._loop.call_soon(self._renew)
