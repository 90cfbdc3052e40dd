"""Requests that drag on, or that two programs could read differently, on a real socket."""

import inspect
import json
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark_sma.web.problem_lookup import HEAD_BYTES, LINE_BYTES, MAX_FIELDS
from birthmark_sma.web.sandbox.connection_faults import SandboxHttpProtocol
from birthmark_sma.web.transport.client_identity import ClientIdentityProtocol
from birthmark_sma.web.transport.protocol import LimitedHttpProtocol
from tests.support.access_keys import start_with_keys
from tests.support.programs.server import Server

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


def retry_state(server: Server, *parts: bytes) -> bytes:
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
    "a head in one write": [HEAD + b"X: " + b"a" * 17_000 + b"\r\n\r\n"],
    "a header without end": [HEAD, b"X: ", *[b"a" * 65_536] * 32],
    "headers without end": [HEAD, *[b"X: " + b"a" * 1_000 + b"\r\n"] * 500],
    "trailers without end": [CHUNKED, *[b"x-a: " + b"b" * 1_000 + b"\r\n"] * 2_000],
    "a trailer without end": [CHUNKED, b"x-a: ", *[b"b" * 65_536] * 64],
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_fields_are_bounded_wherever_they_stand(impatient: Server, name: str) -> None:
    """Threat 16: head and trailers have 16 KiB, and what is more is not stored."""
    before = resident_kib(impatient)
    answer = retry_state(impatient, *UNBOUNDED[name])
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
    head, _, body = retry_state(impatient, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


# --- how much may come before credentials


def asked(target: str = "/health/live", *fields: str, method: str = "GET") -> bytes:
    """A request of the last kind on its connection."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *fields, "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def status_of(answer: bytes) -> int:
    """The status of the first answer."""
    return int(answer.split()[1])


def target_of(size: int) -> str:
    """A target with which the request line has so many bytes."""
    return "/health/live?" + "a" * (size - len("GET /health/live? HTTP/1.1"))


def fields_up_to(size: int) -> list[str]:
    """Header fields with which a whole head has so many bytes."""
    rest = size - len(asked("/health/live", "X: "))
    return [f"X: {'a' * rest}"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(asked(target_of(LINE_BYTES)), 200, id="a line of 8 KiB"),
        pytest.param(asked(target_of(LINE_BYTES + 1)), 414, id="a line of one byte more"),
        pytest.param(asked("/health/live?" + "%41=%42&" * 7_500), 414, id="a query of 60 KB"),
        pytest.param(asked("/health/ready?" + "&" * 60_000), 414, id="60 KB for readiness"),
        pytest.param(asked("/?" + "&" * 60_000), 414, id="60 KB for the front page"),
        pytest.param(asked("/dashboard/sign-in?" + "&" * 60_000), 414, id="60 KB to sign in"),
        pytest.param(asked("/health/live", *fields_up_to(HEAD_BYTES)), 200, id="a head of 16 KiB"),
        pytest.param(asked("/health/live", *fields_up_to(HEAD_BYTES + 1)), 431, id="one byte more"),
        pytest.param(asked("/dashboard/x", "Cookie: " + ";" * 60_000), 431, id="60 KB of cookies"),
        pytest.param(asked("/health/live", *["X: y"] * (MAX_FIELDS - 2)), 200, id="100 fields"),
        pytest.param(asked("/health/live", *["X: y"] * (MAX_FIELDS - 1)), 431, id="101 fields"),
    ],
)
@pytest.mark.parametrize("part", [100_000, 1_000], ids=["at once", "in parts"])
def test_line_head_and_fields_are_bounded(
    impatient: Server, request_bytes: bytes, status: int, part: int
) -> None:
    """Threat 34: and the answer arrives, though the sender may not have sent all yet."""
    parts = [request_bytes[at : at + part] for at in range(0, len(request_bytes), part)]
    answer = retry_state(impatient, *parts)
    assert status_of(answer) == status
    if status != 200:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status


def seconds_of(server: Server, request_bytes: bytes) -> float:
    """How long a request takes on a connection of its own, from its first byte to the answer."""
    with connected(server) as connection:
        begun = time.perf_counter()
        connection.sendall(request_bytes)
        assert connection.recv(65_536)
        return time.perf_counter() - begun


def test_a_query_of_60_kb_costs_no_more_than_twice_a_plain_request(impatient: Server) -> None:
    """Threat 34: measured in turns, so that both meet the same machine."""
    plain, long = asked(), asked("/health/live?" + "%41=%42&" * 7_500)
    pairs = [(seconds_of(impatient, plain), seconds_of(impatient, long)) for _ in range(300)]
    of_plain, of_long = (statistics.median(each) for each in zip(*pairs, strict=True))
    assert of_long < 2 * of_plain


@pytest.mark.parametrize(
    "dear",
    [
        pytest.param(asked("/health/live?" + "&a" * 4_000), id="live"),
        pytest.param(asked("/health/ready?" + "&a" * 4_000), id="ready"),
        pytest.param(asked("/?" + "&a" * 4_000), id="front page"),
        pytest.param(asked("/dashboard/sign-in?" + "&a" * 4_000), id="sign in"),
        pytest.param(asked("/dashboard/static/curve.js?" + "&a" * 4_000), id="static"),
        pytest.param(asked("/dashboard/sign-in", "Cookie: " + ";a" * 8_000), id="cookies"),
        pytest.param(
            asked("/dashboard/sign-in", "Cookie: sma-session=" + "; " * 8_000), id="our cookie"
        ),
    ],
)
def test_what_the_bounds_allow_is_not_parsed_for_strangers(impatient: Server, dear: bytes) -> None:
    """Threat 34: 8 KiB of query or 16 KiB of cookies cost a stranger's request next to nothing.

    Parsing them took 5 ms and more, several times what the plain request takes.
    """
    plain = asked(dear.split()[1].partition(b"?")[0].decode())
    pairs = [(seconds_of(impatient, plain), seconds_of(impatient, dear)) for _ in range(100)]
    of_plain, of_dear = (statistics.median(each) for each in zip(*pairs, strict=True))
    assert of_dear < of_plain + 0.002


# --- one reading


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"GET /health/live HTTP/1.1\r\n", 400, id="no Host"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400, id="two"),
        pytest.param(b"GET /health/live HTTP/1.0\r\nHost: a\r\nHost: b\r\n", 400, id="two, 1.0"),
        pytest.param(b"GET /health/live HTTP/1.0\r\n", 200, id="1.0 without Host"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost:\r\n", 200, id="empty"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: [::1]:80 \r\n", 200, id="IPv6"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: a,b\r\n", 400, id="a list"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: a@b\r\n", 400, id="userinfo"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: a/b\r\n", 400, id="a path in Host"),
        pytest.param(b"GET /health/live HTTP/1.1\r\nHost: a%2Eb\r\n", 400, id="an escape"),
        pytest.param(b"GET http://a/health/live HTTP/1.1\r\n", 400, id="absolute, no Host"),
        pytest.param(b"GET /health/live HTTP/2.0\r\nHost: a\r\n", 505, id="2.0"),
        pytest.param(b"GET /health/live HTTP/0.9\r\nHost: a\r\n", 505, id="0.9"),
        pytest.param(b"GET /health/live HTTP/1.2\r\nHost: a\r\n", 400, id="1.2"),
    ],
)
def test_exactly_one_host(impatient: Server, head: bytes, status: int) -> None:
    """Threat 38: RFC 9112, section 3.2."""
    assert status_of(retry_state(impatient, head + b"Connection: close\r\n\r\n")) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("Transfer-Encoding: chunked", 422),
        ("Transfer-Encoding: Chunked ", 422),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: identity", 501),
        ("Transfer-Encoding: x", 501),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 400),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", 400),
        ("Content-Length: 2\r\nContent-Length: 2", 400),
        ("Content-Length: 2, 2", 400),
    ],
)
def test_transfer_codings(impatient: Server, fields: str, status: int) -> None:
    """Threat 38: RFC 9112, sections 6.1 and 6.3: what is not understood is not read as plain."""
    request_bytes = asked(
        "/api/v1/validate/nuc", "Content-Type: application/json", fields, method="POST"
    )
    answer = retry_state(impatient, request_bytes + b"2\r\n{}\r\n0\r\n\r\n")
    assert status_of(answer) == status


def test_chunks_and_http_1_0(impatient: Server) -> None:
    """Threat 38: a sender of HTTP/1.0 knows no chunks: something changed its request."""
    head = b"POST /validate HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status_of(retry_state(impatient, head + b"2\r\n{}\r\n0\r\n\r\n")) == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("Content-Type: application/json", 422),
        ('Content-Type: Application/JSON; Charset="UTF-8"', 422),
        ("Content-Type: application/json; charset=utf-16", 415),
        ("Content-Type: application/json\r\nContent-Type: text/plain", 415),
        ("Content-Type: text/plain\r\nContent-Type: application/json", 415),
        ("Content-Type: application/json, text/plain", 415),
        ("Content-Type: application/json\r\nContent-Encoding: gzip", 415),
        ("X: y", 415),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/validate/nuc", "/api/v1/devices/provision"])
def test_one_content_type(impatient: Server, path: str, fields: str, status: int) -> None:
    """Threat 38: a body that a proxy could take for something else is not read."""
    request_bytes = asked(path, "Content-Length: 2", fields, method="POST") + b"{}"
    assert status_of(retry_state(impatient, request_bytes)) == status


def test_trailers_are_no_header_fields(tmp_path: Path) -> None:
    """Threat 38: a key in a trailer opens nothing, and no trailer changes the request."""
    running, keys = start_with_keys(tmp_path / "data", "sqlite:", SMA_TABLES="5")
    head = (
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{}"
        "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\nConnection: close\r\n\r\n"
        "2\r\n{{}}\r\n0\r\n{}\r\n\r\n"
    )
    shown = f"Authorization: Bearer {keys['validate']}\r\n"
    with running.server as server:
        for path in ("/api/v1/validate/nuc", "/api/v1/validate/nuc/batch", "/validate"):
            # The head comes first, and the trailer while the request waits for its body.
            let_in = 200 if path == "/validate" else 422  # both for an object without a token
            for fields, trailer, status in (
                ("", shown.rstrip(), 401),
                (shown, shown.rstrip(), let_in),
                (shown, "Content-Type: text/plain\r\nHost: y\r\nX-Request-ID: z", let_in),
                (shown, "\r\n".join(["X: y"] * 200), let_in),
            ):
                whole = head.format(path, fields, trailer).encode()
                for cut in (len(whole), whole.index(b"\r\n0\r\n")):
                    answer = retry_state(server, whole[:cut], whole[cut:])
                    # A published client gets an answer for an object without a token.
                    right = 200 if (path, status) == ("/validate", 422) else status
                    assert status_of(answer) == right, (path, fields, trailer)
                    assert b"x-request-id: z" not in answer


# --- what this stands on


def test_the_methods_of_uvicorn_that_are_replaced_exist() -> None:
    """An overridden or called method that uvicorn no longer has would be passed over in silence."""
    ours = (LimitedHttpProtocol, ClientIdentityProtocol, SandboxHttpProtocol)
    replaced = {
        "connection_made": ["transport"],
        "connection_lost": ["exc"],
        "data_received": ["data"],
        "eof_received": [],
        "on_message_begin": [],
        "on_url": ["url"],
        "on_header": ["name", "value"],
        "on_headers_complete": [],
        "on_body": ["body"],
        "on_message_complete": [],
        "on_response_complete": [],
        "send_400_response": ["msg"],
        "_unsupported_upgrade_warning": [],
        "_start_asgi_task": ["cycle", "app"],
    }
    for name, arguments in replaced.items():
        theirs = inspect.signature(getattr(HttpToolsProtocol, name)).parameters
        assert list(theirs) == ["self", *arguments], name
        assert any(name in vars(each) for each in ours), f"{name} is replaced nowhere"
    assert list(inspect.signature(FlowControl.resume_reading).parameters) == ["self"]
    assert list(inspect.signature(FlowControl.pause_reading).parameters) == ["self"]


def test_the_attributes_of_uvicorn_that_are_read_exist() -> None:
    """They are set in constructors, and in no class."""
    protocol = inspect.getsource(HttpToolsProtocol)
    for name in ("url", "headers", "scope", "cycle", "pipeline", "flow", "transport", "parser"):
        assert f"self.{name} = " in protocol or f"self.{name}: " in protocol, name
    cycle = inspect.getsource(RequestResponseCycle)
    for name in (
        *("scope", "body", "more_body", "disconnected", "keep_alive", "message_event"),
        *("response_started", "response_complete", "waiting_for_100_continue", "default_headers"),
    ):
        assert f"self.{name} = " in cycle, name
