"""A device is revoked while two processes validate its tokens as fast as they can."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

import pytest

from birthmark_sma.authority.devices import store as device_store
from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.postgres import Postgres
from tests.support.devices.registered import device
from tests.support.pki.crls import fetch_crl, fetch_crl_with
from tests.support.programs.commands import sma
from tests.support.programs.load import Connection
from tests.support.programs.running import Running, new_serial, start
from tests.support.soak import tell

BATCH = f"{VALIDATE}/batch"
TOKENS = 25  # of a batch
CONNECTIONS = 8
BODIES = 40  # different batches, which are sent again and again: replays pass as well
SECONDS = 2.0  # of load before and after the act
# One snapshot of the database: a PASS that commits after the act would be missing in the first one.
SNAPSHOT = (
    "SELECT (SELECT status FROM registered_devices WHERE device_serial = ?),"
    " (SELECT count(*) FROM validation_history WHERE device_serial = ?"
    " AND validation_result = 'PASS')"
)


Bodies = list[tuple[str, bytes]]
"""Paths and bodies of requests."""


@dataclass
class Load:
    """The responses to a stream of tokens: when each was sent, when it came, and its verdicts."""

    answers: list[tuple[float, float, list[str]]] = field(default_factory=list)

    def verdicts(self, sent_after: float, until: float = float("inf")) -> list[str]:
        """Return the verdicts of tokens that were sent after a time, and answered until another.

        A verdict of before the act may be read after it, on a busy machine.
        """
        return [
            verdict
            for sent, came, verdicts in list(self.answers)
            if sent_after < sent and came <= until
            for verdict in verdicts
        ]


async def _send(url: str, bodies: Bodies, load: Load, stop: Callable[[], bool]) -> None:
    async def work(number: int) -> None:
        connection = await Connection.open(url)
        for path, body in cycle(bodies[number:] + bodies[:number]):
            if stop():
                break
            sent = time.monotonic()
            answer = await connection.ask("POST", path, body)
            assert answer.status == 200, answer
            told = answer.json()
            results = told["results"] if path == BATCH else [told]
            verdicts = [each["validation_result"] for each in results]
            load.answers.append((sent, time.monotonic(), verdicts))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(work(number))


@contextmanager
def loaded(running: Running, camera: Camera) -> Iterator[Load]:
    """Validate tokens of a camera until the block ends: half of the requests are batches."""
    bodies: Bodies = []
    for _ in range(BODIES):
        tokens = [wire(camera.token()) for _ in range(TOKENS)]
        bodies.append((BATCH, json.dumps({"tokens": tokens}).encode()))
        bodies.append((VALIDATE, json.dumps(tokens[0]).encode()))
    load, stop = Load(), threading.Event()
    sending = threading.Thread(
        target=lambda: asyncio.run(_send(running.server.url, bodies, load, stop.is_set))
    )
    sending.start()
    try:
        yield load
    finally:
        stop.set()
        sending.join(60)
    assert not sending.is_alive()


def act_under_load(running: Running, *act: str, status: str) -> float:
    """Do an act under load; return how many tokens a second were validated before."""
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
    with loaded(running, camera) as load:
        time.sleep(SECONDS)
        began = time.monotonic()
        done = sma("devices", *act, camera.serial, environ=running.environ)
        returned = time.monotonic()
        assert done.returncode == 0, done.stderr
        [(found, passes)] = running.rows(SNAPSHOT, camera.serial, camera.serial)
        assert found == status
        time.sleep(SECONDS)
    assert set(load.verdicts(0, began)) == {"PASS"}
    later = load.verdicts(returned)
    assert set(later) == {"FAIL"}
    assert len(later) > 100
    assert running.rows(SNAPSHOT, camera.serial, camera.serial) == [(status, passes)]
    first = load.answers[0][0]
    return len(load.verdicts(0, began)) / (began - first)


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (("revoke", "--reason", "key_compromise"), "revoked"),
        (("suspend",), "suspended"),
        (("retire",), "retired"),
    ],
)
def test_no_token_passes_after_the_act(
    start_server: Start, act: tuple[str, ...], status: str
) -> None:
    """Threat 6: neither process answers or records PASS after the commit."""
    running = start_server("--workers", "2", "--any-core")
    with running.server:
        act_under_load(running, *act, status=status)


@pytest.mark.measured
def test_a_revocation_under_load(own_postgres: Postgres, tmp_path: Path) -> None:
    """At 1,000 validations a second and more, on two processes."""
    running = start(
        tmp_path / "data", own_postgres.url, "--workers", "2", "--any-core", **FEW_TABLES
    )
    with running.server:
        for _ in range(3):
            rate = act_under_load(running, "revoke", "--reason", "key_compromise", status="revoked")
            tell(f"{rate:,.0f} validations/s before the revocation")
            assert rate >= 1_000


@pytest.mark.measured
def test_ten_thousand_devices_in_one_act(database_url: str, tmp_path: Path) -> None:
    """Within 10 seconds, from the start of the command to its end; the list follows."""
    running = start(tmp_path / "data", database_url, "--workers", "2", **FEW_TABLES)
    ends = datetime.now(UTC) + timedelta(days=700)
    many = [
        replace(device(number), device_family="Leaked", certificate_expires_at=ends)
        for number in range(1, 10_001)
    ]
    listed = tmp_path / "serials"
    listed.write_text("".join(f"{each.device_serial}\n" for each in many))
    with running.server, running.client() as client:
        with running.database() as database, database.write() as transaction:
            device_store.add_devices(transaction, many)
        before = len(fetch_crl(client))
        for act in (
            ("suspend", "--file", str(listed)),
            ("reinstate", "--family", "Leaked", "--yes"),
            ("revoke", "--file", str(listed), "--reason", "key_compromise"),
        ):
            began = time.monotonic()
            done = sma("devices", *act, environ=running.environ)
            took = time.monotonic() - began
            assert done.returncode == 0, done.stderr
            tell(f"{running.database_url.partition(':')[0]}: {act[0]} 10,000 in {took:.2f} s")
            assert took < 10
        began = time.monotonic()
        crl = fetch_crl_with(client, 10_000, within=10)
        tell(f"on the list {time.monotonic() - began:.2f} s later")
        assert len(crl) == before + 10_000
