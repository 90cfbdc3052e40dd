"""Measure the time from the start of `sma serve` to its first verdict, on an existing authority."""

import http.client
import socket
import subprocess
import sys
import time

from bench.figures import POSTGRESQL, SQLITE
from bench.parts.stage import Filled, Stage
from birthmark_sma.web.api.validate import PATH

_PATIENCE_SECONDS = 60
_PAUSE_SECONDS = 0.005


def measure(stage: Stage) -> None:
    """Start the server on each database, in turn, and note the seconds to its first PASS."""
    sides = {POSTGRESQL: stage.main(), SQLITE: stage.on_sqlite()}
    for _ in range(stage.options.rounds):
        for database, filled in sides.items():
            seconds = _seconds_to_first_verdict(filled)
            stage.report.read(name_of(database), "s", seconds)
            stage.say(f"{name_of(database)}: {seconds:.2f} s")


def name_of(database: str) -> str:
    """Return the name of the reading for a database."""
    return f"second start to first verdict, {database}"


def _seconds_to_first_verdict(filled: Filled) -> float:
    # The port must be known before the server prints it, to measure from the start of the process.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "birthmark_sma", "serve", "--port", str(port)],
        env=filled.site.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            while time.perf_counter() - began < _PATIENCE_SECONDS and server.poll() is None:
                if _passes(port, filled.bodies[0]):
                    return time.perf_counter() - began
                time.sleep(_PAUSE_SECONDS)
        finally:
            server.terminate()
    raise RuntimeError("the server did not start")


def _passes(port: int, body: bytes) -> bool:
    """Return whether a token gets PASS. Return False while the server does not listen yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status == 200 and b'"PASS"' in answer.read()
    except OSError:
        return False
    finally:
        connection.close()
