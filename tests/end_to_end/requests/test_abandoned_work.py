"""Work that nobody waits for ends, and so does a server that is told to, whatever it does."""

import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

from tests.end_to_end.conftest import Start
from tests.support.authorities import writers_held_up
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.pki.crls import fetch_crl
from tests.support.programs.running import Running, Servers, new_serial, wait_until

LEFT_SECONDS = 10.0
_WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'birthmark-sma'"
    " AND datname = current_database() AND wait_event_type = 'Lock' AND query ~ %s"
)


@contextlib.contextmanager
def everybody_held_up(running: Running) -> Iterator[None]:
    """Let neither readers nor writers of the register and the audit trail go on (PostgreSQL)."""
    with psycopg.connect(running.database_url) as connection:
        connection.execute(
            "LOCK TABLE registered_devices, validation_history, validation_counters,"
            " device_family_counters, device_activity IN ACCESS EXCLUSIVE MODE"
        )
        yield


def waiting_statements(running: Running, pattern: str = ".") -> int:
    """Return how many of the server's statements wait for a lock and match `pattern`.

    Background tasks wait as well. A test that counts a request's statements names them.
    """
    number: int = running.rows(_WAITING, pattern)[0][0]
    return number


@contextlib.contextmanager
def sent(running: Running, request: str) -> Iterator[socket.socket]:
    """Send a request, and read nothing."""
    place = urlsplit(running.server.url)
    with socket.create_connection((place.hostname, place.port or 0), timeout=30) as connection:
        connection.sendall(f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield connection


@pytest.fixture
def on_postgresql(servers: Servers) -> Running:
    """A server on PostgreSQL, which can be held up."""
    return servers.get("postgresql")


@pytest.mark.parametrize(
    ("path", "statement", "resets"),
    [
        ("/stats", "date_bin.*FROM validation_counters", False),
        ("/dashboard", "date_bin.*FROM validation_counters", False),
        (
            "/dashboard/validations.csv",
            "FROM validation_history.*ORDER BY validation_history.validated_at DESC",
            True,
        ),
    ],
)
def test_what_a_caller_asked_for_ends_when_it_leaves(
    on_postgresql: Running, path: str, statement: str, resets: bool
) -> None:
    """Threat 49: once its connection is closed, nothing of it goes on in the database."""
    running = on_postgresql
    said_before = len(running.server.said())
    with everybody_held_up(running):
        with sent(running, f"GET {path}") as connection:
            if resets:  # an answer that has begun goes on for who has closed one half alone
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            wait_until(lambda: waiting_statements(running, statement) > 0, 10)
        wait_until(lambda: waiting_statements(running, statement) == 0, 8)
    time.sleep(0.2)
    said = running.server.said()[said_before:]
    assert "ASGI" not in said  # the server's own complaint of a request without an answer
    assert "Traceback" not in said


def test_slow_work_keeps_nothing_else_waiting(on_postgresql: Running) -> None:
    """Threat 49: figures that hang hold up neither revocation lists nor probes."""
    running = on_postgresql
    with contextlib.ExitStack() as open_requests, running.client() as client:
        fetch_crl(client)
        open_requests.enter_context(everybody_held_up(running))
        for _ in range(6):
            open_requests.enter_context(sent(running, "GET /stats"))
        wait_until(lambda: waiting_statements(running) >= 2, 10)
        for path in ("/pki/intermediate.crl", "/pki/root.crl", "/health/live", "/health/ready"):
            began = time.monotonic()
            assert client.get(path).status_code == 200
            assert time.monotonic() - began < 3


def ask_and_forget(running: Running, ask: Callable[[httpx2.Client], object]) -> threading.Thread:
    """Ask in a thread, whatever comes of it."""

    def run() -> None:
        with contextlib.suppress(httpx2.HTTPError), running.client() as client:
            ask(client)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_a_server_whatever_is_under_way(start_server: Start, workers: str) -> None:
    """Threats 31 and 49: in ten seconds, with statements that hang and callers that do not read.

    On SQLite one waits for the file, on PostgreSQL for locks.
    """
    running = start_server("--workers", workers)
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        for _ in range(5):
            assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
    recorded = running.count("validation_history")
    with contextlib.ExitStack() as stack:
        if running.uses_sqlite:
            stack.enter_context(writers_held_up(running.database_url))
        else:
            stack.enter_context(everybody_held_up(running))
        threads = [
            ask_and_forget(running, lambda client: client.get("/stats")),
            ask_and_forget(running, lambda client: client.get("/dashboard")),
            ask_and_forget(running, lambda client: client.get("/metrics")),
            ask_and_forget(running, lambda client: client.get("/dashboard/validations.csv")),
            ask_and_forget(
                running, lambda client: client.post(VALIDATE, json=wire(camera.token()))
            ),
            ask_and_forget(
                running, lambda client: client.post(PROVISION, json=provision_body(new_serial()))
            ),
        ]
        for _ in range(3):
            stack.enter_context(sent(running, "GET /dashboard/validations.jsonl"))
        time.sleep(1)
        began = time.monotonic()
        running.server.process.send_signal(signal.SIGTERM)
        running.server.process.wait(30)
        assert time.monotonic() - began < LEFT_SECONDS
        for thread in threads:
            thread.join(30)
    assert running.count("validation_history") in (recorded, recorded + 1)
