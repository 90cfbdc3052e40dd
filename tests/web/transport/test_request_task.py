"""Head and body in one write, and only where that changes nothing."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from birthmark_sma.web.transport.request_task import JoinedResponse

LENGTH = (b"content-length", b"2")


class Writes(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def sent(*messages: Message, method: str = "GET", keep_alive: bool = True) -> Writes:
    """Return the writes of a response."""
    transport = Writes()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def respond() -> None:
        scope: Any = {"method": method, "http_version": "1.1", "client": None}
        cycle = RequestResponseCycle(
            scope=scope,
            transport=transport,
            flow=FlowControl(transport),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: None,
        )
        joined: Any = JoinedResponse(app, cycle)
        await cycle.run_asgi(joined)

    asyncio.run(respond())
    return transport


def head(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    """The first message of a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes = b"{}", *, more: bool = False) -> Message:
    """A further message of the response."""
    return {"type": "http.response.body", "body": content, "more_body": more}


def test_one_write() -> None:
    [written] = sent(head(LENGTH), body()).written
    assert written == b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\n{}"


def test_the_status_is_that_of_the_response() -> None:
    """Heads are kept by status."""
    [written] = sent(head(LENGTH, status=404), body()).written
    assert written.startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_a_connection_that_is_to_end() -> None:
    transport = sent(head(LENGTH), body(), keep_alive=False)
    assert b"\r\nconnection: close\r\n\r\n{}" in transport.written[0]
    assert transport.closed


@pytest.mark.parametrize(
    ("messages", "method"),
    [
        ([head(), body()], "GET"),
        ([head(LENGTH), body()], "HEAD"),
        ([head(status=304), body(b"")], "GET"),
        ([head(LENGTH, (b"connection", b"close")), body()], "GET"),
        ([head(LENGTH), body(b"{", more=True), body(b"}")], "GET"),
    ],
    ids=["chunked", "HEAD", "304", "connection", "in parts"],
)
def test_any_other_response_is_written_by_uvicorn(messages: list[Message], method: str) -> None:
    """It writes the head and the body apart."""
    written = sent(*messages, method=method).written
    assert written[0].endswith(b"\r\n\r\n")
    assert len(written) > 1 or method == "HEAD" or b" 304 " in written[0]


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\0b"])
def test_no_field_begins_another(value: bytes) -> None:
    """Response splitting: nothing is sent, and the connection ends."""
    transport = sent(head(LENGTH, (b"x", value)), body())
    assert transport.written == []
    assert transport.closed
