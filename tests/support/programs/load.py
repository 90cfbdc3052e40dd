"""Send many requests over several connections at once, and return each complete response.

It uses plain sockets, because a client library could retry and hide a fault.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.camera import VALIDATE, wire

Note = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """An HTTP response, its time in seconds, and its Retry-After if it has one."""

    status: int
    body: bytes
    seconds: float
    retry_after: int | None = None

    def json(self) -> Any:
        """Return the body, parsed as JSON."""
        return json.loads(self.body)


class BrokenConnectionError(Exception):
    """The connection ended before the response was complete."""


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to a server. Raises BrokenConnectionError."""
        place = urlsplit(url)
        try:
            return cls(*await asyncio.open_connection(place.hostname, place.port))
        except OSError as error:
            raise BrokenConnectionError from error

    async def ask(self, method: str, path: str, body: bytes = b"", more: str = "") -> Answer:
        """Send a request and return its response. Raises BrokenConnectionError.

        `more` has additional header fields, each with its line end.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{more}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        began = time.perf_counter()
        try:
            self._writer.write(head.encode() + b"\r\n" + body)
            await self._writer.drain()
            status_line, *lines = (await self._reader.readuntil(b"\r\n\r\n")).splitlines()
            fields = dict(line.lower().split(b":", 1) for line in lines if line)
            content = await self._reader.readexactly(int(fields[b"content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise BrokenConnectionError from error
        wait = fields.get(b"retry-after")
        return Answer(
            int(status_line.split()[1]),
            content,
            time.perf_counter() - began,
            None if wait is None else int(wait),
        )

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def ask_all(
    url: str,
    path: str,
    bodies: Sequence[bytes],
    *,
    connections: int = 16,
    note: Note = lambda answered: None,
) -> list[Answer | None]:
    """POST every body over `connections` connections. Return the responses in order.

    A response is None if the connection ended before it. `note` gets the number of responses so
    far, after each response.
    """
    answers: list[Answer | None] = [None] * len(bodies)
    waiting = iter(range(len(bodies)))
    answered = 0

    async def work() -> None:
        nonlocal answered
        try:
            connection = await Connection.open(url)
            for number in waiting:
                answers[number] = await connection.ask("POST", path, bodies[number])
                answered += 1
                note(answered)
        except BrokenConnectionError:
            return
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return answers


def post_all(
    url: str, path: str, bodies: Sequence[dict[str, Any]], *, connections: int = 16
) -> list[Answer | None]:
    """POST JSON bodies like `ask_all`, from a thread without an event loop."""
    encoded = [json.dumps(body).encode() for body in bodies]
    return asyncio.run(ask_all(url, path, encoded, connections=connections))


def validate_all(
    url: str,
    tokens: Sequence[CameraToken],
    *,
    connections: int = 16,
    note: Note = lambda answered: None,
) -> list[Answer | None]:
    """Validate camera tokens like `ask_all`, one token in each request."""
    bodies = [json.dumps(wire(token)).encode() for token in tokens]
    return asyncio.run(ask_all(url, VALIDATE, bodies, connections=connections, note=note))
