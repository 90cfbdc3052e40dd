"""Faults of the server, of its clients, of its Redis, and of those who read its log."""

import json
import os
import resource
import signal
import socket
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
_BURST_CALLERS = 64
_BURST_BODIES = 50
_SMALL_BATCH = 100
_LARGE_BATCH = 1_000
_DAY_SECONDS = 86_400


@contextmanager
def _killed(bed: Bed) -> Iterator[None]:
    """Kill the server, and start it again as a supervisor does."""
    bed.running.server.kill()
    yield
    bed.start_again()


@contextmanager
def _terminated(bed: Bed) -> Iterator[None]:
    assert bed.running.server.terminate() == 0
    yield
    bed.start_again()


@contextmanager
def _worker_killed(bed: Bed) -> Iterator[None]:
    """Kill the process that has more connections."""
    os.kill(max(workers_of(bed.running), key=_count_files), signal.SIGKILL)
    yield


def _count_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


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
    resource.prlimit(bed.pid, limit, (_count_files(bed.pid) + _SPARE_DESCRIPTORS, before[1]))
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


@contextmanager
def _callers_leave(bed: Bed) -> Iterator[None]:
    """Send batches of 1,000 tokens, and close each connection before the answer."""
    body = _batch(bed, _LARGE_BATCH).encode()
    head = f"POST {VALIDATE}/batch HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send() -> None:
        with socket.create_connection(_address(bed), 5) as caller:
            caller.sendall(request)

    with repeated(send, 0.1):
        yield


def _batch(bed: Bed, size: int) -> str:
    camera = bed.new_camera()
    return json.dumps({"tokens": [wire(camera.token()) for _ in range(size)]})


@contextmanager
def _burst(bed: Bed) -> Iterator[None]:
    """Let 64 more callers send batches of 100 tokens without a pause."""
    bodies = bed.place.new_folder("burst") / "bodies"
    batches = [_batch(bed, _SMALL_BATCH) for _ in range(_BURST_BODIES)]
    bodies.write_text("\n".join(batches), encoding="ascii")
    path = f"{VALIDATE}/batch"
    with flooding(bed.running.server.url, path, bodies, connections=_BURST_CALLERS):
        yield


@contextmanager
def _clock_wrong(bed: Bed, days: float) -> Iterator[None]:
    bed.clock.set(round(days * _DAY_SECONDS))
    yield
    bed.clock.set(0)


@contextmanager
def _log_not_read(bed: Bed) -> Iterator[None]:
    bed.is_log_read.clear()
    yield
    bed.is_log_read.set()


FAULTS = (
    Fault("SIGKILL, started again after 1 s", _killed, _SUPERVISOR_SECONDS, ends_server=True),
    Fault("SIGTERM under load, started again", _terminated, 0.0, ends_server=True),
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
    Fault("too many open files, 60 more callers", _too_many_files),
    Fault("200 callers that send half a request", _half_requests),
    Fault("callers that leave before the answer", _callers_leave),
    Fault("64 more callers of batches, without a pause", _burst, 2 * QUICK_SECONDS),
    Fault(
        "clock of the server a day slow", lambda bed: _clock_wrong(bed, -1), bed=BedKind.FALSE_CLOCK
    ),
    Fault(
        "clock of the server a day fast", lambda bed: _clock_wrong(bed, 1), bed=BedKind.FALSE_CLOCK
    ),
    Fault(
        "clock of PostgreSQL set back by an hour",
        lambda bed: _clock_wrong(bed, -1 / 24),
        bed=BedKind.FALSE_DATABASE_CLOCK,
    ),
    Fault(
        "clock of PostgreSQL set forward by an hour, then back",
        lambda bed: _clock_wrong(bed, 1 / 24),
        bed=BedKind.FALSE_DATABASE_CLOCK,
    ),
    Fault("Redis away", _redis_away, bed=BedKind.REDIS),
    Fault("Redis frozen", lambda bed: frozen([bed.redis.pid]), HANGING_SECONDS, BedKind.REDIS),
    Fault("log not read, its pipe full", _log_not_read, bed=BedKind.LOG_PIPE),
)
