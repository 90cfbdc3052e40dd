"""An HTTP server on raw sockets that responds to validation requests with chosen faults."""

import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

Behaviour = Callable[["Visit"], None]

NEVER_LASTS_LONGER = 30.0


class Visit:
    """One request on a connection. A behaviour decides about the response."""

    def __init__(self, connection: socket.socket, request: bytes, stopped: threading.Event) -> None:
        self.connection = connection
        self.request = request
        self.stopped = stopped

    @property
    def tokens(self) -> list[dict[str, Any]]:
        """The camera tokens of the request."""
        tokens: list[dict[str, Any]] = json.loads(self.request.partition(b"\r\n\r\n")[2])["tokens"]
        return tokens

    @property
    def headers(self) -> dict[str, str]:
        """The header fields, by their names in lower case."""
        head = self.request.partition(b"\r\n\r\n")[0].decode("ascii")
        pairs = [line.partition(":") for line in head.split("\r\n")[1:]]
        return {name.lower(): value.strip() for name, _, value in pairs}

    def send(self, data: bytes) -> None:
        """Send bytes. Ignore a closed connection."""
        with suppress(OSError):
            self.connection.sendall(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Send single bytes, and wait `seconds` before each."""
        for letter in data:
            if self.stopped.wait(seconds):
                return
            try:
                self.connection.sendall(bytes([letter]))
            except OSError:
                return

    def answer(
        self,
        body: bytes | dict[str, Any],
        status: int | str = 200,
        content_type: str = "application/json",
        **headers: str,
    ) -> None:
        """Send a complete, valid response. `_` in a header's name stands for `-`."""
        self.send(http(body, status, content_type, **headers))

    def wait(self) -> None:
        """Send nothing until the server ends, or for 30 s."""
        self.stopped.wait(NEVER_LASTS_LONGER)

    def reset(self) -> None:
        """Close the connection with RST."""
        # SO_LINGER with a timeout of 0 makes close() send RST in place of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def http(
    body: bytes | dict[str, Any],
    status: int | str = 200,
    content_type: str = "application/json",
    **headers: str,
) -> bytes:
    """Return an HTTP response as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Some" if isinstance(status, int) else f"HTTP/1.1 {status}"]
    head += [f"Content-Type: {content_type}", f"Content-Length: {len(content)}"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


PASSED: dict[str, Any] = {
    "validation_result": "PASS",
    "manufacturer_id": "SimulatedMfg",
    "device_family": "Test",
    "device_serial": "camera-1",
    "timestamp": "2026-01-31T12:00:00.000Z",
}
FAILED: dict[str, Any] = PASSED | {
    "validation_result": "FAIL",
    "device_family": None,
    "device_serial": None,
}


def all_pass(visit: Visit) -> None:
    """Respond with PASS for every token, as the API's contract says."""
    visit.answer({"results": [PASSED] * len(visit.tokens)})


class FaultyServer:
    """A server on 127.0.0.1. The n-th request gets the n-th behaviour, later ones the last.

    `before_reading` replaces the behaviours: it runs when a client has connected.
    """

    def __init__(
        self,
        *behaviours: Behaviour,
        tls: ssl.SSLContext | None = None,
        before_reading: Behaviour | None = None,
    ) -> None:
        self._behaviours = behaviours or (all_pass,)
        self._tls = tls
        self._before_reading = before_reading
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.visits: list[Visit] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with suppress(OSError):  # shutdown wakes the thread in accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(NEVER_LASTS_LONGER)
        with suppress(OSError, ValueError):
            if self._before_reading is not None:
                self._before_reading(Visit(connection, b"", self._stopped))
                return
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            while not self._stopped.is_set():
                connection.settimeout(0.05)
                request = _read_request(connection, self._stopped)
                if request is None:
                    break
                connection.settimeout(NEVER_LASTS_LONGER)
                visit = Visit(connection, request, self._stopped)
                with self._lock:
                    number = len(self.visits)
                    self.visits.append(visit)
                self._behaviours[min(number, len(self._behaviours) - 1)](visit)
        connection.close()


def _read_request(connection: socket.socket, stopped: threading.Event) -> bytes | None:
    data = b""
    while not stopped.is_set():
        try:
            part = connection.recv(65_536)
        except TimeoutError:
            continue
        if not part:
            return None
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if end and data.startswith(b"GET "):
            return data
        if end and length is not None and len(body) >= int(length.group(1)):
            return data
    return None
