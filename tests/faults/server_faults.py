"""Faults of the server, of its clients, of its Redis, and of those who read its log."""

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.beds import Bed, BedKind
from tests.faults.fault import HANGING_SECONDS, QUICK_SECONDS, Fault
from tests.faults.postgresql_faults import repeated
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.programs.flood import flooding
from tests.support.programs.running import frozen, workers_of

_SUPERVISOR_SECONDS = 1.0
_STOPPED_SECONDS = 3.0
_SPARE_DESCRIPTORS = 5
_IDLE_CALLERS = 60
_HALF_REQUESTS = 200
_BURST_CALLERS = 96
_BURST_TOKENS = 5_000
_IN_A_BATCH = 1_000


@contextmanager
def _killed(bed: Bed) -> Iterator[None]:
    """Kill the server, and start it again as a supervisor does."""
    bed.running.server.kill()
    time.sleep(_SUPERVISOR_SECONDS)
    bed.start_again()
    yield


@contextmanager
def _terminated(bed: Bed) -> Iterator[None]:
    assert bed.running.server.terminate() == 0
    bed.start_again()
    yield


@contextmanager
def _worker_killed(bed: Bed) -> Iterator[None]:
    os.kill(workers_of(bed.running)[0], signal.SIGKILL)
    yield


@contextmanager
def _redis_away(bed: Bed) -> Iterator[None]:
    bed.redis.kill()
    yield
    bed.redis.start()


def _address(bed: Bed) -> tuple[str, int]:
    parts = urlsplit(bed.running.server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@contextmanager
def _too_many_files(bed: Bed) -> Iterator[None]:
    """Leave the server five more file descriptors, and connect more callers than that."""
    limit = resource.RLIMIT_NOFILE
    before = resource.prlimit(bed.pid, limit)
    used = len(list(Path(f"/proc/{bed.pid}/fd").iterdir()))
    resource.prlimit(bed.pid, limit, (used + _SPARE_DESCRIPTORS, before[1]))
    with ExitStack() as callers:
        for _ in range(_IDLE_CALLERS):
            callers.enter_context(socket.create_connection(_address(bed), 5))
        yield
    resource.prlimit(bed.pid, limit, before)


@contextmanager
def _half_requests(bed: Bed) -> Iterator[None]:
    """Let many callers send half a request, and nothing more."""
    head = f"POST {VALIDATE} HTTP/1.1\r\nHost: test\r\nContent-Length: 200\r\n"
    parts = (head.encode(), f"{head}Content-Type: application/json\r\n\r\n{{".encode())
    with ExitStack() as callers:
        for number in range(_HALF_REQUESTS):
            caller = callers.enter_context(socket.create_connection(_address(bed), 5))
            caller.sendall(parts[number % 2])
        yield


def _batch(bed: Bed) -> bytes:
    camera = bed.new_camera()
    tokens = [wire(camera.token()) for _ in range(_IN_A_BATCH)]
    body = json.dumps({"tokens": tokens}).encode()
    head = f"POST {VALIDATE}/batch HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def _callers_leave(bed: Bed) -> Iterator[None]:
    """Send batches of 1,000 tokens, and close each connection before the answer."""
    request = _batch(bed)

    def send() -> None:
        with socket.create_connection(_address(bed), 5) as caller:
            caller.sendall(request)

    with repeated(send, 0.1):
        yield


@contextmanager
def _burst(bed: Bed) -> Iterator[None]:
    """Let 96 more callers send one token after the other, without a pause."""
    camera = bed.new_camera()
    bodies = bed.place.new_folder("burst") / "bodies"
    tokens = [json.dumps(wire(camera.token())) for _ in range(_BURST_TOKENS)]
    bodies.write_text("\n".join(tokens), encoding="ascii")
    with flooding(bed.running.server.url, VALIDATE, bodies, connections=_BURST_CALLERS):
        yield


@contextmanager
def _log_not_read(bed: Bed) -> Iterator[None]:
    bed.is_log_read.clear()
    yield
    bed.is_log_read.set()


FAULTS = (
    Fault("SIGKILL, started again after 1 s", _killed, 1.0, ends_server=True),
    Fault("SIGTERM under load, started again", _terminated, 1.0, ends_server=True),
    Fault(
        "stopped for 3 s (SIGSTOP, SIGCONT)",
        lambda bed: frozen([bed.pid]),
        _STOPPED_SECONDS,
        ends_server=True,
    ),
    Fault(
        "one process of two killed (SIGKILL)",
        _worker_killed,
        bed=BedKind.TWO_PROCESSES,
        ends_server=True,
    ),
    Fault("too many open files", _too_many_files),
    Fault("200 callers that send half a request", _half_requests),
    Fault("callers that leave before the answer", _callers_leave),
    Fault("96 more callers without a pause", _burst, 2 * QUICK_SECONDS),
    Fault("Redis away", _redis_away, bed=BedKind.REDIS),
    Fault("Redis frozen", lambda bed: frozen([bed.redis.pid]), HANGING_SECONDS, BedKind.REDIS),
    Fault("log not read, its pipe full", _log_not_read, bed=BedKind.LOG_PIPE),
)
