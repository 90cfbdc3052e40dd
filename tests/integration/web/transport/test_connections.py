"""Camera tokens on a raw socket: however a request arrives, it gets one answer, and the same."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.running import Running, new_serial, resident_megabytes

JSON_TYPE = "Content-Type: application/json\r\n"
NAMED = f"{JSON_TYPE}X-Request-ID: the-same\r\n"
"""So that two answers have one id, and can be the same."""


@dataclass
class Connection:
    """One connection, and what has arrived on it and was not read yet."""

    socket: socket.socket
    rest: bytes = b""
    statuses: list[int] = field(default_factory=list)

    def send(self, *parts: bytes, pause: float = 0.0) -> None:
        """Send parts, each in a packet of its own."""
        for part in parts:
            self.socket.sendall(part)
            time.sleep(pause)

    def answer(self, *, bodiless: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers by lower-case name, body; of HEAD there is none."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in fields)
        }
        length = 0 if bodiless else int(headers["content-length"])
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return int(line.split()[1]), headers, body

    def is_at_its_end(self) -> bool:
        """Whether the server closed it, with nothing left to read."""
        self.socket.settimeout(10)
        return not self.rest and self.socket.recv(1) == b""

    def _more(self) -> None:
        part = self.socket.recv(65_536)
        assert part, "the connection was closed"
        self.rest += part


@pytest.fixture
def camera(running: Running) -> Camera:
    """A provisioned camera."""
    with running.client() as client:
        return Camera.provisioned(client, new_serial())


@pytest.fixture
def connect(running: Running) -> Callable[[], Connection]:
    """Connect to the server."""
    place = urlsplit(running.server.url)

    def connected() -> Connection:
        return Connection(socket.create_connection((place.hostname, place.port), timeout=10))

    return connected


def body_of(token: CameraToken) -> bytes:
    """A token as JSON."""
    return json.dumps(wire(token)).encode()


def request(body: bytes, *, version: str = "1.1", fields: str = "", path: str = VALIDATE) -> bytes:
    """A request with a body of known length."""
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{JSON_TYPE}{fields}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def verdict(body: bytes) -> str:
    """PASS or FAIL."""
    told: str = json.loads(body)["validation_result"]
    return told


def test_in_any_pieces(connect: Callable[[], Connection], camera: Camera) -> None:
    """A request may arrive in any number of packets, cut anywhere."""
    whole = request(body_of(camera.token()))
    connection = connect()
    for cut in (1, 30, len(whole) - 60, len(whole) - 1):
        connection.send(whole[:cut], whole[cut:], pause=0.02)
        status, headers, body = connection.answer()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert verdict(body) == "PASS"


def test_one_byte_at_a_time(connect: Callable[[], Connection], camera: Camera) -> None:
    """Not even that matters."""
    connection = connect()
    for byte in request(body_of(camera.token())):
        connection.send(bytes([byte]))
    assert verdict(connection.answer()[2]) == "PASS"


def test_answers_of_a_pipeline_come_in_order(
    running: Running, connect: Callable[[], Connection], camera: Camera
) -> None:
    """Requests sent without waiting are answered one after the other, each its own."""
    good = camera.token()
    bad = CameraToken(good.encrypted_nuc_hash, good.table_id, good.key_index, b"\0" * 12)
    asked = [request(body_of(each)) for each in (good, bad, good, bad, bad, good)]
    asked.insert(3, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    asked.insert(5, request(b"{}"))
    connection = connect()
    connection.send(b"".join(asked))
    answers = [connection.answer() for _ in asked]
    assert [status for status, _, _ in answers] == [200, 200, 200, 200, 200, 422, 200, 200]
    told = [verdict(answers[number][2]) for number in (0, 1, 2, 4, 6, 7)]
    assert told == ["PASS", "FAIL", "PASS", "FAIL", "FAIL", "PASS"]
    assert len(running.audit_rows(good)) == 6


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"table_id": 1}', b'{"a": 1, "a": 2}', b"\xff", b""],
    ids=["cut off", "a list", "incomplete", "a name twice", "not UTF-8", "empty"],
)
def test_errors_are_the_same_for_chunked_bodies(
    connect: Callable[[], Connection], body: bytes
) -> None:
    """A body of unknown length gets the same problem document as one of known length."""
    connection = connect()
    connection.send(request(body, fields="X-Request-ID: the-same\r\n"))
    direct = connection.answer()
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    head = f"POST {VALIDATE} HTTP/1.1\r\nHost: x\r\n{NAMED}Transfer-Encoding: chunked\r\n\r\n"
    connection.send(head.encode() + chunk + b"0\r\n\r\n")
    chunked = connection.answer()
    assert direct[0] == chunked[0] == 422
    assert json.loads(direct[2]) == json.loads(chunked[2])
    assert direct[1]["x-request-id"] == "the-same"
    assert direct[1] | {"date": ""} == chunked[1] | {"date": ""}


def test_verdicts_are_the_same_for_chunked_bodies(
    connect: Callable[[], Connection], camera: Camera
) -> None:
    """But for the time, and the order of the headers."""
    body = body_of(camera.token())
    connection = connect()
    connection.send(request(body, fields="X-Request-ID: the-same\r\n"))
    direct = connection.answer()
    head = f"POST {VALIDATE} HTTP/1.1\r\nHost: x\r\n{NAMED}Transfer-Encoding: chunked\r\n\r\n"
    connection.send(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    chunked = connection.answer()
    assert direct[0] == chunked[0] == 200
    assert direct[1]["x-request-id"] == "the-same"
    assert direct[1] | {"date": ""} == chunked[1] | {"date": ""}
    assert json.loads(direct[2]) | {"timestamp": ""} == json.loads(chunked[2]) | {"timestamp": ""}


def test_an_unknown_table_is_400_and_recorded(
    running: Running, connect: Callable[[], Connection], camera: Camera
) -> None:
    """Threat 15: the one answer that is neither a verdict nor a refusal before one."""
    good = camera.token()
    lost = CameraToken(good.encrypted_nuc_hash, 99_999, good.key_index, good.nonce)
    connection = connect()
    connection.send(request(body_of(lost)))
    status, headers, body = connection.answer()
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(body)["error"] == "Unknown table ID"
    assert len(running.audit_rows(lost)) == 1


@pytest.mark.parametrize(
    ("version", "fields"), [("1.1", "Connection: close\r\n"), ("1.0", "")], ids=["close", "1.0"]
)
def test_who_wants_the_connection_closed(
    connect: Callable[[], Connection], camera: Camera, version: str, fields: str
) -> None:
    """Gets the answer first, and then the end."""
    connection = connect()
    connection.send(request(body_of(camera.token()), version=version, fields=fields))
    status, headers, body = connection.answer()
    assert (status, verdict(body)) == (200, "PASS")
    assert headers["connection"] == "close"
    assert connection.is_at_its_end()


def test_who_asks_before_sending_the_body(
    connect: Callable[[], Connection], camera: Camera
) -> None:
    """`Expect: 100-continue` gets its go-ahead (RFC 9110, section 10.1.1)."""
    whole = request(body_of(camera.token()), fields="Expect: 100-continue\r\n")
    head, separator, body = whole.partition(b"\r\n\r\n")
    connection = connect()
    connection.send(head + separator)
    assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(body)
    assert verdict(connection.answer()[2]) == "PASS"


def test_who_leaves_before_the_answer(
    running: Running, connect: Callable[[], Connection], camera: Camera
) -> None:
    """The attempt is recorded all the same, and the server is as well as before."""
    tokens = [camera.token() for _ in range(20)]
    for token in tokens:
        connection = connect()
        connection.send(request(body_of(token)))
        connection.socket.close()
    deadline = time.monotonic() + 10
    while any(not running.audit_rows(token) for token in tokens):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    last = connect()
    last.send(request(body_of(camera.token())))
    assert verdict(last.answer()[2]) == "PASS"


def test_an_idle_connection_is_closed_after_a_while(
    connect: Callable[[], Connection], camera: Camera
) -> None:
    """Threat 16: it may be used again for some seconds, and not for ever."""
    connection = connect()
    for pause in (0.0, 2.0):
        time.sleep(pause)
        connection.send(request(body_of(camera.token())))
        assert verdict(connection.answer()[2]) == "PASS"
    began = time.monotonic()
    connection.socket.settimeout(15)
    assert connection.socket.recv(1) == b""
    assert 4 < time.monotonic() - began < 12


def test_what_is_not_http_is_told_after_the_answers_due(
    connect: Callable[[], Connection], camera: Camera
) -> None:
    """A refusal is never taken for the answer to a request that came before."""
    good = request(body_of(camera.token()))
    broken = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n"
    for refused in (b"\0 is not HTTP\r\n\r\n", broken):
        connection = connect()
        connection.send(good + good + refused)
        answers = [connection.answer() for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 400]
        assert [verdict(body) for _, _, body in answers[:2]] == ["PASS", "PASS"]
        assert connection.is_at_its_end()


def test_who_closes_one_half(connect: Callable[[], Connection], camera: Camera) -> None:
    """Whoever has said all may still read all answers."""
    connection = connect()
    connection.send(request(body_of(camera.token())) * 3)
    connection.socket.shutdown(socket.SHUT_WR)
    assert [verdict(connection.answer()[2]) for _ in range(3)] == ["PASS"] * 3
    assert connection.is_at_its_end()


def test_who_closes_one_half_too_early(connect: Callable[[], Connection]) -> None:
    """Half a request gets no answer, and holds nothing."""
    connection = connect()
    connection.send(request(b"{}")[:-1])
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.is_at_its_end()


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["at once", "in parts"])
def test_who_would_like_another_protocol(
    connect: Callable[[], Connection], camera: Camera, pause: float
) -> None:
    """RFC 9110, section 7.8: the wish is passed over, as Java's client and others expect."""
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    whole = request(body_of(camera.token()), fields=wish)
    connection = connect()
    cut = len(whole) - 90 if pause else len(whole)
    connection.send(whole[:40], whole[40:cut], whole[cut:], pause=pause)
    status, headers, body = connection.answer()
    assert (status, verdict(body), headers["connection"]) == (200, "PASS", "close")
    assert connection.is_at_its_end()


def test_who_would_like_another_protocol_many_times(
    connect: Callable[[], Connection], camera: Camera
) -> None:
    """One answer, and then the end."""
    whole = request(body_of(camera.token()), fields="Connection: Upgrade\r\nUpgrade: h2c\r\n")
    connection = connect()
    connection.send(whole * 600)
    assert verdict(connection.answer()[2]) == "PASS"


@pytest.mark.parametrize("path", [VALIDATE, "/nowhere"], ids=["validate", "unknown path"])
def test_who_sends_and_never_reads(
    running: Running, connect: Callable[[], Connection], camera: Camera, path: str
) -> None:
    """Threat 16: requests wait with their sender, and not in this server's memory."""
    before = resident_megabytes(running.server.process.pid)
    flood = request(body_of(camera.token()), path=path) * 500
    connection = connect()
    connection.socket.settimeout(0.5)
    deadline = time.monotonic() + 4
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < deadline:
            connection.socket.sendall(flood)
    assert resident_megabytes(running.server.process.pid) < before + 60
    connection.socket.close()
