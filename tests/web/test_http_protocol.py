"""A request that drags on is ended, on a real socket, and nobody else notices."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.server import Server

SECONDS = 1.0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives a request a second to arrive."""
    place: Path = tmp_path_factory.mktemp("impatient") / "data"
    with Server(place, environ={"SMA_REQUEST_TIMEOUT": str(SECONDS)}) as server:
        yield server


def connected(server: Server) -> socket.socket:
    """A connection of one's own."""
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), timeout=10)


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: a", id="half a head"),
        pytest.param(
            b"POST /api/v1/validate/nuc HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
            id="half a body",
        ),
    ],
)
def test_a_request_that_drags_on_is_408(impatient: Server, begun: bytes) -> None:
    """Threat 16: a client that stops half way does not hold its connection for ever."""
    started = time.monotonic()
    with connected(impatient) as connection:
        connection.sendall(begun)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert SECONDS <= time.monotonic() - started < 5


def test_bytes_that_trickle_do_not_win_time(impatient: Server) -> None:
    """Threat 16: what counts is when the request began, and not when it last said something."""
    with connected(impatient) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        deadline = time.monotonic() + 8
        answer = b""
        connection.settimeout(0.2)
        while time.monotonic() < deadline and not answer:
            try:
                connection.sendall(b"a")
                answer = connection.recv(65_536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert time.monotonic() < deadline


def test_many_requests_on_one_connection_have_time_each(impatient: Server) -> None:
    """A connection that is used for longer than one request may take stays open."""
    with impatient.client() as client:
        for _ in range(6):
            assert client.get("/health/live").status_code == 200
            time.sleep(0.5)


def test_a_body_after_a_long_pause_between_requests(impatient: Server) -> None:
    """The time runs from the request, not from the connection: an idle one is kept a while."""
    with connected(impatient) as connection:
        request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        for pause in (2 * SECONDS, 0):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):  # head and body may come one after the other
                part = connection.recv(65_536)
                assert part, "the connection was closed"
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(pause)


def exchange(server: Server, *parts: bytes) -> bytes:
    """Send bytes until the server has had enough, and return what it says."""
    with connected(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        try:
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionError:
            return b""


HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CHUNKED = (
    b"POST /api/v1/validate/nuc HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
)
UNBOUNDED = {
    "a head in one write": [HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n"],
    "a header without end": [HEAD, b"X: ", *[b"a" * 65_536] * 32],
    "headers without end": [HEAD, *[b"X: " + b"a" * 1_000 + b"\r\n"] * 500],
    "trailers without end": [CHUNKED, *[b"x-a: " + b"b" * 1_000 + b"\r\n"] * 2_000],
    "a trailer without end": [CHUNKED, b"x-a: ", *[b"b" * 65_536] * 64],
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_fields_are_bounded_wherever_they_stand(impatient: Server, name: str) -> None:
    """Threat 16: head and trailers have 64 KiB, and what is more is not stored."""
    before = resident_kib(impatient)
    answer = exchange(impatient, *UNBOUNDED[name])
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert resident_kib(impatient) - before < 20_000


def resident_kib(server: Server) -> int:
    """The server's memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    [line] = [each for each in status.splitlines() if each.startswith("VmRSS:")]
    return int(line.split()[1])


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_answered_with_a_problem(impatient: Server, sent: bytes) -> None:
    """Every error is a problem document, also where no request could be read."""
    head, _, body = exchange(impatient, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400
