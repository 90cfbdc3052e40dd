"""An event loop that accepts several connections in one turn.

uvloop accepts one connection in each turn of the loop. A turn lasts 0.1 to 0.3 seconds while 2,500
connections are busy, so a probe over a new connection waited 8 seconds in the queue of the kernel.
`web.server` names `new_event_loop` to uvicorn, which calls it in each process that serves.
"""

import asyncio
import contextlib
import logging
import socket
import ssl as tls
from collections.abc import Callable
from typing import Any

import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_AT_ONCE = 256
_PAUSE_SECONDS = 1.0  # after an error such as too many open files, which the kernel repeats at once

_log = logging.getLogger(__name__)


class Acceptor:
    """A server on a listening socket, as uvicorn uses it. The event loop owns all fields.

    The number of connections in a turn is doubled as long as more wait, and begins at one. So the
    processes that share the socket share the connections of a burst.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], HttpToolsProtocol],
        listener: socket.socket,
        context: tls.SSLContext | None,
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._listener = listener
        self._context = context
        self._at_once = 1
        self._opening: set[asyncio.Task[None]] = set()
        self._is_open = True
        listener.setblocking(False)  # noqa: FBT003
        loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more connections. Those that are open stay open."""
        self._is_open = False
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Wait for the connections that are being opened."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                self._at_once = 1
                return
            except ConnectionAbortedError:  # the client has left the queue
                continue
            except OSError as error:
                self._pause(error)
                return
            connection.setblocking(False)  # noqa: FBT003
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        self._at_once = min(2 * self._at_once, _MOST_AT_ONCE)

    async def _open(self, connection: socket.socket) -> None:
        # The transport reports its end to the protocol. A client that fails in the TLS handshake,
        # or leaves it, has no protocol yet.
        with contextlib.suppress(OSError):
            _transport, protocol = await self._loop.connect_accepted_socket(
                self._protocol_factory, connection, ssl=self._context
            )
            if not self._is_open:  # uvicorn has told all other connections
                protocol.shutdown()

    def _pause(self, error: OSError) -> None:
        _log.error("connections cannot be accepted, trying again in a second: %s", error.strerror)
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)


class AcceptingLoop(uvloop.Loop):
    """uvloop's event loop, whose servers on a given socket are `Acceptor`s."""

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], HttpToolsProtocol],
        host: Any = None,
        port: Any = None,
        *,
        sock: socket.socket | None = None,
        ssl: tls.SSLContext | None = None,
        **options: Any,
    ) -> Any:
        """Return a server. The backlog of a given socket stays as it is."""
        if sock is None:
            return await super().create_server(protocol_factory, host, port, ssl=ssl, **options)
        return Acceptor(self, protocol_factory, sock, ssl)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop."""
    return AcceptingLoop()
