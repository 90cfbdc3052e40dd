"""Connections are accepted, and liveness probes answered, in few turns of a busy event loop."""

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from birthmark_sma.web.transport import accepting_loop
from birthmark_sma.web.transport.accepting_loop import AcceptingLoop, Acceptor
from birthmark_sma.web.transport.protocol import LimitedHttpProtocol

PROBE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
OTHER = b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n"
BURST = 200


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Say the path."""
    body = scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Turns:
    """Counts the turns of the running loop."""

    def __init__(self) -> None:
        self.number = 0
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._count)

    def _count(self) -> None:
        self.number += 1
        self._loop.call_soon(self._count)


def run(test: Callable[[socket.socket, ServerState], Awaitable[None]]) -> None:
    """Run a test with a listening socket, on which a server of an AcceptingLoop accepts."""

    async def served() -> None:
        state = ServerState()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        config = Config(app, lifespan="off")
        config.load()

        def protocol() -> LimitedHttpProtocol:
            return LimitedHttpProtocol(config, state, {})

        server = await asyncio.get_running_loop().create_server(protocol, sock=listener)
        try:
            await asyncio.wait_for(test(listener, state), 30)
        finally:
            server.close()
            await server.wait_closed()
            listener.close()

    with asyncio.Runner(loop_factory=AcceptingLoop) as runner:
        runner.run(served())


@contextmanager
def connected(listener: socket.socket, requests: list[bytes]) -> Iterator[list[socket.socket]]:
    """Connect and send, before the loop can accept."""
    clients = []
    for request in requests:
        client = socket.create_connection(listener.getsockname())
        client.sendall(request)
        client.setblocking(False)
        clients.append(client)
    time.sleep(0.1)  # until the kernel has delivered it
    yield clients
    for client in clients:
        client.close()


async def answer_of(client: socket.socket) -> bytes:
    """Return a response."""
    return await asyncio.get_running_loop().sock_recv(client, 4096)


def test_a_burst_is_accepted_in_few_turns() -> None:
    """uvloop alone takes a turn for each connection."""

    async def test(listener: socket.socket, state: ServerState) -> None:
        with connected(listener, [b""] * BURST):
            turns = Turns()
            while len(state.connections) < BURST:
                await asyncio.sleep(0)
            assert turns.number < 30

    run(test)


def test_a_probe_behind_a_burst_is_answered_in_few_turns() -> None:
    """It is the last in the queue of the kernel."""

    async def test(listener: socket.socket, _state: ServerState) -> None:
        with connected(listener, [OTHER] * 20 + [PROBE]) as clients:
            turns = Turns()
            reading = asyncio.ensure_future(answer_of(clients[-1]))
            assert b"/health/live" in await reading
            probe = turns.number
            assert b"/other" in await answer_of(clients[0])
            assert probe < 12

    run(test)


def test_the_connection_of_a_probe_can_be_used_again() -> None:
    async def test(listener: socket.socket, state: ServerState) -> None:
        with connected(listener, [PROBE]) as [client]:
            for _ in range(2):
                assert b" 200 " in (answer := await answer_of(client))
                assert answer.endswith(b"/health/live")
                client.sendall(OTHER)
                assert (await answer_of(client)).endswith(b"/other")
                client.sendall(PROBE)
            await answer_of(client)
            assert len(state.connections) == 1

    run(test)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b" 200 "),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b" 400 "),
        (b"GET /health/live HTTP/1.1\r\n\r\n", b" 400 "),
    ],
)
def test_the_connection_of_a_probe_ends(request_bytes: bytes, status: bytes) -> None:
    """The protocol is the same as for other requests."""

    async def test(listener: socket.socket, state: ServerState) -> None:
        with connected(listener, [request_bytes]) as [client]:
            text = b""
            while part := await answer_of(client):
                text += part
            assert status in text.partition(b"\r\n")[0]
            while state.connections:
                await asyncio.sleep(0.01)

    run(test)


def test_a_caller_that_left_the_queue_harms_nobody() -> None:
    async def test(listener: socket.socket, _state: ServerState) -> None:
        with connected(listener, [PROBE] * 3) as clients:
            clients[0].close()
            assert b" 200 " in await answer_of(clients[2])

    run(test)


class FullTable(socket.socket):
    """A listener of a process that has too many open files, at first."""

    failures = 1

    def accept(self) -> tuple[socket.socket, object]:
        """Fail once."""
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_too_many_open_files_are_no_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, not in every turn."""
    monkeypatch.setattr(accepting_loop, "_PAUSE_SECONDS", 0.2)
    loop = AcceptingLoop()
    with FullTable() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = Config(app, lifespan="off")
        config.load()
        acceptor = Acceptor(
            loop, lambda: LimitedHttpProtocol(config, ServerState(), {}, loop), listener, None
        )
        with connected(listener, [PROBE]) as [client]:
            answer = loop.run_until_complete(asyncio.wait_for(loop.sock_recv(client, 4096), 10))
        acceptor.close()
        loop.run_until_complete(acceptor.wait_closed())
    loop.close()
    assert b" 200 " in answer
    assert "Too many open files" in caplog.text
