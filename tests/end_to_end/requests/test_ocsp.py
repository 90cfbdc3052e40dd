"""OCSP under load: a revocation that shows on every process in time, and answers a second.

`make soak` alone measures the answers a second, and prints them. They are counted for each second
of CPU time of the server, as the load generator is slower than the server.
"""

import asyncio
import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import Camera
from tests.support.devices.acts import reinstate_device, suspend_device
from tests.support.pki.crls import certificate_serial_of
from tests.support.pki.ocsp import get_path, post, request_for, status_of
from tests.support.programs.commands import sma
from tests.support.programs.load import Connection
from tests.support.programs.running import Running, new_serial, workers_of
from tests.support.soak import times

SHOWS_SECONDS = 2.0
"""The contract: from the commit to the first response that shows it, on every process."""
CHANGES = times(4, 20)
WORKERS = 2
CONNECTIONS_A_LOOK = 8  # new ones, so that every process answers some
DEVICES = 1_000
CONNECTIONS = 32
WANTED_A_SECOND = 2_000


def issuer_of(client: httpx2.Client) -> x509.Certificate:
    """Return the certificate of the issuer."""
    return x509.load_der_x509_certificate(client.get("/pki/intermediate.crt").content)


def statuses(running: Running, request: bytes) -> list[str]:
    """Return what the processes say, over new connections."""
    said = []
    for _ in range(CONNECTIONS_A_LOOK):
        with running.client() as client:
            read = ocsp.load_der_ocsp_response(post(client, request).content)
            said.append(read.certificate_status.name)
    return said


def test_a_change_shows_on_every_process(start_server: Start) -> None:
    """Suspended and reinstated again and again, beside requests all the time."""
    running = start_server("--workers", str(WORKERS))
    with running.server, running.client() as client, running.database() as database:
        assert len(workers_of(running)) == WORKERS
        camera = Camera.provisioned(client, new_serial())
        request = request_for(issuer_of(client), certificate_serial_of(camera.response))
        assert set(statuses(running, request)) == {"GOOD"}
        for number in range(CHANGES):
            change = reinstate_device if number % 2 else suspend_device
            before, after = ("REVOKED", "GOOD") if number % 2 else ("GOOD", "REVOKED")
            change(database, camera.serial)
            committed = time.monotonic()
            while (asked := time.monotonic()) - committed < SHOWS_SECONDS + 1:
                said = statuses(running, request)
                wanted = {before, after} if asked - committed < SHOWS_SECONDS else {after}
                assert set(said) <= wanted, f"{asked - committed:.1f} s after the commit"


def cpu_seconds(running: Running) -> float:
    """Return the CPU time that a server of one process has used (Linux)."""
    stat = Path(f"/proc/{running.server.process.pid}/stat").read_text(encoding="ascii")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def ask_all(url: str, paths: Sequence[str], most: int) -> None:
    """GET the paths in turn over several connections, `most` times."""
    waiting = iter(range(most))

    async def work() -> None:
        connection = await Connection.open(url)
        for number in waiting:
            answer = await connection.ask("GET", paths[number % len(paths)])
            assert (answer.status, answer.body[:1]) == (200, b"\x30")
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())


def answers_a_second(running: Running, paths: Sequence[str], most: int) -> float:
    """Return the answers for each second of CPU time of the server."""
    began = cpu_seconds(running)
    asyncio.run(ask_all(running.server.url, paths, most))
    return most / (cpu_seconds(running) - began)


@pytest.mark.measured
def test_answers_a_second(start_server: Start, tmp_path: Path) -> None:
    """From one process: 2,000 a second of known certificates, and of new ones half as many."""
    running = start_server("--workers", "1")
    devices = tmp_path / "devices.csv"
    with devices.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["device_serial", "device_family"])
        writer.writerows([f"many-{number}", "Test"] for number in range(DEVICES))
    results = str(tmp_path / "results.jsonl")
    made = sma(
        *("provision-batch", str(devices), "--output", results, "--make-keys"),
        environ=running.environ,
    )
    assert made.returncode == 0, made.stderr
    serials = running.rows("SELECT certificate_serial FROM registered_devices")
    with running.server, running.client() as client:
        issuer = issuer_of(client)
        requests = [request_for(issuer, int(serial, 16)) for (serial,) in serials]
        paths = [get_path(each) for each in requests]
        new = answers_a_second(running, paths, DEVICES)
        known = answers_a_second(running, paths, 10 * DEVICES)
        one = answers_a_second(running, paths[:1], 10 * DEVICES)
        assert status_of(client.get(paths[0]).content).value == 0
    kind = "SQLite" if running.uses_sqlite else "PostgreSQL"
    sys.stdout.write(
        f"\nOCSP on {kind}: {new:,.0f} answers a second about new certificates, {known:,.0f} about"
        f" {DEVICES:,} known ones, {one:,.0f} about one\n"
    )
    assert known >= WANTED_A_SECOND
    assert one >= WANTED_A_SECOND
    assert new >= WANTED_A_SECOND / 2
