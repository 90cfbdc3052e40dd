"""Send the head of an answer together with the body that follows it.

uvicorn writes them one after the other, each a system call and a packet of its own.
"""

import asyncio
from typing import Any


class CoalescingTransport:
    """A transport that holds back what was written until more comes, or the loop's next turn."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send what is held together with this, or hold this."""
        if self._held:
            held, self._held = self._held, b""
            self._send(held + data)
        elif data:
            self._held = data
            self._loop.call_soon(self._release)

    def write_whole(self, data: bytes) -> None:
        """Send this at once, behind what is held: nothing more will come that belongs to it."""
        held, self._held = self._held, b""
        self._send(held + data)

    def write_eof(self) -> None:
        """Send what is held, and that nothing more will come."""
        self._release()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is held, then close."""
        self._release()
        self._transport.close()

    def is_closing(self) -> bool:
        """Say whether nothing more can be sent."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)

    def _release(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._send(held)

    def _send(self, data: bytes) -> None:
        """Send, unless the other side has left: asyncio would say nothing, uvloop raises."""
        if not self._transport.is_closing():
            self._transport.write(data)
