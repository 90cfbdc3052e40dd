"""Answer a liveness probe in the turn of the event loop in which its connection is accepted.

A probe over a new connection otherwise takes five turns, of which each lasts 50 to 100 ms under
load: accept, transport, protocol, read, respond. On a busy server the request has arrived by the
time at which its connection is accepted, so it can be read at once. `accepting_loop` calls
`read_probe` for each new connection without TLS. The protocol is the same as for any request: this
module only takes the place of the transport, until the first response is sent.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from birthmark_sma.web.routes import LIVE

_BEGINNING = f"GET {LIVE.path} HTTP/1.1\r\n".encode()
_END = b"\r\n\r\n"
_MOST_BYTES = 2_048


def read_probe(connection: socket.socket) -> bytes | None:
    """Return the request of a liveness probe that has arrived completely, and nothing else.

    None leaves everything to be read by the transport.
    """
    try:
        arrived = connection.recv(_MOST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if arrived.startswith(_BEGINNING) and arrived.find(_END) == len(arrived) - len(_END):
            return connection.recv(len(arrived))
    except OSError:  # nothing has arrived yet; or the client has left, as the transport will notice
        pass
    return None


class ProbeTransport(asyncio.Transport):
    """The transport of a connection for one response. The event loop owns all fields.

    Call `begin`. After the response, `take_over` gets a connection that stays open.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        take_over: Callable[[socket.socket], object],
    ) -> None:
        super().__init__({"socket": connection})
        self._loop = loop
        self._connection = connection
        self._take_over = take_over
        self._protocol: HttpToolsProtocol | None = None

    def begin(self, protocol: HttpToolsProtocol, request: bytes) -> None:
        """Let the protocol respond to the request."""
        self._protocol = protocol
        protocol.connection_made(self)
        protocol.data_received(request)

    def write(self, data: Any) -> None:
        """Send a part of the response. It is small, and the buffer of a new socket is empty."""
        if self._protocol is None:
            return
        try:
            sent = self._connection.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            self.abort()
        else:
            self._loop.call_soon(self._leave)

    def write_eof(self) -> None:
        """End the sending side, after the response to a request that was refused."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def is_closing(self) -> bool:
        """Return True once the connection is closed or given away."""
        return self._protocol is None

    def close(self) -> None:
        """Close the connection. Everything that was written is on its way."""
        if self._lose_protocol():
            self._connection.close()

    def abort(self) -> None:
        """Close the connection."""
        self.close()

    def pause_reading(self) -> None:
        """Do nothing: this transport never reads."""

    def resume_reading(self) -> None:
        """Do nothing: this transport never reads."""

    def _leave(self) -> None:
        """Give the connection to an ordinary transport once the response is complete."""
        protocol = self._protocol
        if protocol is not None and protocol.cycle and protocol.cycle.response_complete:
            self._lose_protocol()
            self._take_over(self._connection)

    def _lose_protocol(self) -> bool:
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self._loop.call_soon(protocol.connection_lost, None)
        return protocol is not None
