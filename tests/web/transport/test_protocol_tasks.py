"""What uvicorn waits for when it stops: requests that are not finished, or on their way."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from birthmark_sma.web.transport.protocol import _STOP_SECONDS, LimitedHttpProtocol
from tests.web.transport.test_request_task import Writes

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def started(turns: int, *, waits: bool) -> tuple[ServerState, LimitedHttpProtocol]:
    """Return a connection some turns of the loop after a request has arrived."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if waits:
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    state = ServerState()
    protocol = LimitedHttpProtocol(Config(app, lifespan="off"), state, {})
    protocol.connection_made(Writes())
    protocol.data_received(REQUEST)
    for _ in range(turns):
        await asyncio.sleep(0)
    return state, protocol


def test_a_request_is_counted_until_its_end() -> None:
    async def count(*, waits: bool) -> int:
        return len((await started(3, waits=waits))[0].tasks)

    assert asyncio.run(count(waits=True)) == 1
    assert asyncio.run(count(waits=False)) == 0


@pytest.mark.parametrize("turns", [0, 3], ids=["before it begins", "while it waits"])
def test_a_caller_that_leaves_leaves_no_task(turns: int) -> None:
    """uvicorn would wait for it until it is killed."""

    async def leave() -> tuple[int, int]:
        state, protocol = await started(turns, waits=True)
        before = len(state.tasks)
        protocol.connection_lost(None)
        for _ in range(3):
            await asyncio.sleep(0)
        return before, len(state.tasks)

    assert asyncio.run(leave()) == (1, 0)


def test_a_request_that_crosses_a_stop_signal() -> None:
    """A proxy that has sent a POST on an idle connection must not send it twice."""

    async def stop_and_ask() -> bytes:
        _, protocol = await started(3, waits=False)
        protocol.shutdown()
        await asyncio.sleep(0)
        protocol.data_received(REQUEST)
        for _ in range(3):
            await asyncio.sleep(0)
        assert isinstance(protocol.transport, Writes)
        assert protocol.transport.closed
        return b"".join(protocol.transport.written)

    _, first, second = asyncio.run(stop_and_ask()).split(b"HTTP/1.1 204")
    assert b"connection: close" not in first
    assert b"connection: close" in second


def test_an_idle_connection_ends_soon_after_a_stop_signal() -> None:
    async def stop() -> tuple[bool, bool]:
        _, protocol = await started(3, waits=False)
        assert isinstance(protocol.transport, Writes)
        protocol.shutdown()
        before = protocol.transport.closed
        await asyncio.sleep(2 * _STOP_SECONDS)
        return before, protocol.transport.closed

    assert asyncio.run(stop()) == (False, True)
