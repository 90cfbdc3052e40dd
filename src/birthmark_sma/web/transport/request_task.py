"""Run the application for one request: in its turn, and with head and body in one write.

`LimitedHttpProtocol` uses both classes for each request (docs/adr/0007).

* TurnBudget limits the requests that begin in one turn of the event loop. The loop reads all
  connections that have data, then runs a task for each of their requests. With thousands of busy
  connections such a turn takes hundreds of milliseconds, and a liveness probe that arrives in it
  waits for it and for the next one.
* JoinedResponse: uvicorn writes head and body separately, which costs two system calls and two
  packets, and it checks every field by itself. Only a response of known length that comes in one
  piece is joined; any other goes through uvicorn. This must never change what a response says.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from birthmark_sma.web.request_context import Header

# Carriage return and line feed included: a field with one of these would begin another.
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_NO_BODY = frozenset({204, 304})
_SHORT_BYTES = 4_096  # uvicorn stops reading at 65,536, and its `receive` goes on
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

    def enter(self, body_bytes: int) -> "asyncio.Future[None] | None":
        """Begin a request. If this turn is used up, return what to wait for until a later one."""
        cost = 1 + body_bytes // _BYTES_OF_ONE
        if not self._is_counting:
            self._is_counting = True
            self._loop.call_soon(self._renew)
        elif self._left <= 0 or self._waiting:
            future = self._loop.create_future()
            self._waiting.append((future, cost))
            return future  # `_renew` takes the cost
        self._left -= cost
        return None

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


class JoinedResponse:
    """The application as uvicorn runs it for one request: with another `receive` and `send`."""

    __slots__ = ("_app", "_cycle", "_head")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._head: Message | None = None  # held back until the body comes

    def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> Awaitable[None]:
        """Run the application."""
        return self._app(scope, self.receive, self.send)

    async def receive(self) -> Message:
        """Return the next part of the body, as uvicorn's method does.

        A short body that has arrived as a whole is returned without its event.
        """
        cycle = self._cycle
        body = cycle.body
        if cycle.more_body or not 0 < len(body) <= _SHORT_BYTES or cycle.disconnected:
            return cast("Message", await cycle.receive())
        cycle.body = bytearray()
        cycle.message_event.clear()
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async def send(self, message: Message) -> None:
        """Send a message of the response, as uvicorn's method does."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            if not message.get("more_body", False) and self._send_whole(head, message["body"]):
                return
            await self._pass_on(head)
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if self._cycle.transport.is_closing():
            self._cycle.disconnected = True  # asyncio ignores a write from here on; uvloop raises
        await self._cycle.send(message)  # type: ignore[arg-type]  # Starlette has other types

    def _send_whole(self, head: Message, body: bytes) -> bool:
        """Write a response that has come in one piece. Return false for uvicorn to do it."""
        cycle, status = self._cycle, head["status"]
        if (
            cycle.flow.write_paused  # uvicorn then waits for the client
            or cycle.disconnected
            or cycle.transport.is_closing()
            or cycle.scope["method"] == "HEAD"
            or status in _NO_BODY
        ):
            return False
        values = dict(head["headers"])
        if b"connection" in values or int(values.get(b"content-length", -1)) != len(body):
            return False
        lines = [*map(b": ".join, head["headers"])]
        if not cycle.keep_alive:
            lines.append(b"connection: close")
        own = b"\r\n".join(lines)
        # The only control characters are those between the lines.
        if len(own) - len(own.translate(None, _CONTROLS)) != 2 * len(lines) - 2:
            return False  # uvicorn raises the error
        cycle.transport.write(b"".join((_common_head(status, cycle), own, b"\r\n\r\n", body)))
        # What uvicorn's method sets. on_response() starts the next pipelined request.
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


_heads: tuple[Sequence[Header], dict[int, bytes]] = ((), {})  # cache: the fields, heads by status


def _common_head(status: int, cycle: RequestResponseCycle) -> bytes:
    """Return the status line and the header fields that all responses share, from a cache.

    uvicorn makes a new list of these fields each second (Date), so the list's identity is the key.
    """
    global _heads  # noqa: PLW0603
    fields, (made_of, heads) = cycle.default_headers, _heads
    if made_of is not fields:
        heads = {}
        _heads = (fields, heads)
    head = heads.get(status)
    if head is None:
        head = heads[status] = STATUS_LINE[status] + b"".join(
            b"%b: %b\r\n" % each for each in fields
        )
    return head
