"""Print the files of src/ through which one request passes, on a running server.

    python -m checks.call_trace            # the number of files for each kind of request
    python -m checks.call_trace validate   # and the functions, in the order of the first call

Anyone can run it: it starts a server on a free port of 127.0.0.1 with an authority of its own in a
temporary directory. Each request is sent twice before it is recorded, so that imports and caches
are not part of the trace. tests/integration/checks/test_call_trace.py keeps the limits.
"""

import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import IO, Any

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.protocol.camera_token import seal, to_wire
from birthmark_sma.protocol.key_derivation import derive_key
from checks.clean_environment import make_environment
from checks.traced_server import MARK

Call = tuple[str, str]
"""A file below src/birthmark_sma, and the qualified name of a function in it."""

REQUESTS = ("validate", "provision", "ready", "crl")
_SECONDS = 60
_TRACES = 5
_SETTLED_SECONDS = 0.3  # what follows a response (metrics, the log) belongs to the request


class TracedServer:
    """A server that records its calls, and one device to ask it with."""

    def __init__(self, orders: IO[str], lines: "Queue[str]", url: str) -> None:
        self._orders = orders
        self._lines = lines
        self._client = httpx2.Client(base_url=url, trust_env=False, timeout=_SECONDS)
        self._device = self._provision()

    def trace(self, request: str) -> list[Call]:
        """Send a request of a kind and return the calls that it caused, in order.

        The one of several traces with the fewest files, because timers of the event loop run during
        some of them.
        """
        for _ in range(2):
            self._send(request)
        traces = [self._trace_once(request) for _ in range(_TRACES)]
        return min(traces, key=lambda calls: len(list_files(calls)))

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()

    def _trace_once(self, request: str) -> list[Call]:
        time.sleep(_SETTLED_SECONDS)
        self._order("start")
        self._send(request)
        time.sleep(_SETTLED_SECONDS)
        return self._order("stop")

    def _order(self, order: str) -> list[Call]:
        """Send an order and return the recording with which the server answers it."""
        self._orders.write(f"{order}\n")
        self._orders.flush()
        while True:
            line = self._lines.get(timeout=_SECONDS)
            if line.startswith(MARK):
                return [(file, name) for file, name in json.loads(line.removeprefix(MARK))]

    def _send(self, request: str) -> None:
        match request:
            case "validate":
                response = self._client.post("/api/v1/validate/nuc", json=self._make_token())
                if response.json()["validation_result"] != "PASS":
                    raise RuntimeError(f"The token did not pass: {response.text}")
            case "provision":
                self._provision()
            case "ready":
                self._client.get("/health/ready").raise_for_status()
            case "crl":
                self._client.get("/pki/intermediate.crl").raise_for_status()
            case _:
                raise ValueError(f"There is no request {request!r}. Choose from {REQUESTS}.")

    def _provision(self) -> dict[str, Any]:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        body = {
            "device_public_key": key.public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            ).decode(),
            "device_serial": f"traced-{secrets.token_hex(6)}",
            "device_family": "Trace",
        }
        response = self._client.post("/api/v1/devices/provision", json=body)
        device: dict[str, Any] = response.raise_for_status().json()
        return device

    def _make_token(self) -> dict[str, Any]:
        table_id = self._device["table_assignments"][0]
        master_key = bytes.fromhex(self._device["table_keys"][str(table_id)])
        token = seal(
            bytes.fromhex(self._device["simulated_nuc_hash"]),
            key=derive_key(master_key, 0),
            table_id=table_id,
            key_index=0,
            nonce=secrets.token_bytes(12),
        )
        return to_wire(token)


@contextmanager
def run_traced_server() -> Iterator[TracedServer]:
    """Run a server with SQLite in a temporary directory until the end of the block."""
    environment = make_environment() | {"SMA_CA_KEY_TYPE": "ec-p256", "SMA_TABLES": "10"}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "checks.traced_server", "serve", "--port", "0", "--json"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None  # noqa: S101 - they are pipes
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        lines: Queue[str] = Queue()
        threading.Thread(target=_pass_on, args=(process.stderr, lines), daemon=True).start()
        try:
            server = TracedServer(process.stdin, lines, _read_url(process.stdout))
            try:
                yield server
            finally:
                server.close()
        finally:
            process.terminate()
            process.wait(_SECONDS)


def list_files(calls: list[Call]) -> list[str]:
    """Return the files in the order in which they are entered first."""
    return list(dict.fromkeys(file for file, _ in calls))


def _pass_on(errors: IO[str], lines: "Queue[str]") -> None:
    for line in errors:
        lines.put(line)


def _read_url(output: IO[str]) -> str:
    """Return the URL that the server prints as JSON once it listens."""
    text = ""
    for line in output:
        text += line
        if line == "}\n":
            break
    url: str = json.loads(text)["url"]
    return url


def main(arguments: list[str]) -> None:
    """Print the trace of each request that is named, or the number of files of all."""
    with run_traced_server() as server:
        for request in arguments or REQUESTS:
            calls = server.trace(request)
            files = list_files(calls)
            print(f"{request}: {len(files)} files, {len(calls)} calls")
            for file in files if arguments else ():
                names = dict.fromkeys(name for each, name in calls if each == file)
                print(f"  {file}: {', '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
