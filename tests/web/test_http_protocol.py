"""A request that drags on is ended, on a real socket, and nobody else notices."""

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
        connection.sendall(request)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        time.sleep(2 * SECONDS)
        connection.sendall(request)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
