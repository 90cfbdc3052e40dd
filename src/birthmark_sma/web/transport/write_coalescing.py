"""Coalesce writes: send the head and the body of a response in one system call.

uvicorn writes them separately, which costs two system calls and two packets (docs/adr/0007).
`LimitedHttpProtocol` wraps the transport of each connection. Data must leave in the order of the
calls, and never later than the next turn of the event loop.
"""

import asyncio
from typing import Any


class CoalescingTransport:
    """Transport that holds a write until the next write or the next turn of the event loop."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send the held data together with `data`, or hold `data` if nothing is held."""
        if self._held:
            held, self._held = self._held, b""
            self._send(held + data)
        elif data:
            self._held = data
            self._loop.call_soon(self._release)

    def write_whole(self, data: bytes) -> None:
        """Send the held data and `data` now. `data` is a complete response."""
        held, self._held = self._held, b""
        self._send(held + data)

    def write_eof(self) -> None:
        """Send the held data, then close the sending side."""
        self._release()
        self._transport.write_eof()

    def close(self) -> None:
        """Send the held data, then close the connection."""
        self._release()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return true if the transport is closing or closed."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the wrapped transport."""
        return getattr(self._transport, name)

    def _release(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._send(held)

    def _send(self, data: bytes) -> None:
        """Write, unless the connection is closing. asyncio ignores such a write; uvloop raises."""
        if not self._transport.is_closing():
            self._transport.write(data)
