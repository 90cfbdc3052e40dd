"""Rotations beside running servers: no failed request, nothing left under the old key."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from birthmark_sma.authority.authority import open_authority, opened_database
from birthmark_sma.authority.kek.rotation import count_outdated
from birthmark_sma.config import load_settings
from birthmark_sma.errors import WrongSecretError
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.programs.commands import Background, sma
from tests.support.programs.load import Answer, Connection
from tests.support.programs.running import Running, new_serial
from tests.support.secret_search import found_in
from tests.support.soak import times

OTHER = "another passphrase for tests alone"
MANY_TABLES = {"SMA_TABLES": "2500"}
"""So that a rotation takes a while."""

REQUESTS_A_SECOND = times(150, 500)
PROVISIONS_IN = times(8, 25)
"""One request in so many provisions a device, or asks for a first answer again."""


@dataclass
class Load:
    """What was asked, and what came back."""

    url: str
    camera: Camera
    statuses: Counter[int] = field(default_factory=Counter)
    firsts: list[tuple[bytes, str, bytes]] = field(default_factory=list)
    """Body, header and answer of every device that was provisioned with an Idempotency-Key."""
    wrong: list[bytes] = field(default_factory=list)
    ended: bool = False

    async def run(self) -> None:
        """Ask at a steady rate until told to end."""
        connections = [await Connection.open(self.url) for _ in range(24)]
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in connections:
            free.put_nowait(connection)
        began, asked = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while not self.ended:
                due = (time.perf_counter() - began) * REQUESTS_A_SECOND
                while asked < due:
                    group.create_task(self._ask(await free.get(), free, asked))
                    asked += 1
                await asyncio.sleep(0.002)
        for connection in connections:
            connection.close()

    async def _ask(
        self, connection: Connection, free: "asyncio.Queue[Connection]", number: int
    ) -> None:
        if number % PROVISIONS_IN:
            answer = await self._validate(connection)
        elif number % (2 * PROVISIONS_IN) or not self.firsts:
            answer = await self._provision(connection)
        else:
            body, header, first = random.choice(self.firsts)
            answer = await connection.ask("POST", PROVISION, body, header)
            if answer.body != first:
                self.wrong.append(answer.body)
        self.statuses[answer.status] += 1
        if answer.status != 200:
            self.wrong.append(answer.body)
        free.put_nowait(connection)

    async def _validate(self, connection: Connection) -> Answer:
        body = json.dumps(wire(self.camera.token())).encode()
        answer = await connection.ask("POST", VALIDATE, body)
        if b'"PASS"' not in answer.body:
            self.wrong.append(answer.body)
        return answer

    async def _provision(self, connection: Connection) -> Answer:
        body = json.dumps(provision_body(new_serial())).encode()
        header = f"Idempotency-Key: {new_serial('key')}\r\n"
        answer = await connection.ask("POST", PROVISION, body, header)
        self.firsts.append((body, header, answer.body))
        return answer


@contextlib.contextmanager
def under_load(running: Running) -> Iterator[Load]:
    """Load a server until the end of the block."""
    with running.client() as client:
        load = Load(running.server.url, Camera.provisioned(client, new_serial()))
    thread = threading.Thread(target=lambda: asyncio.run(load.run()))
    thread.start()
    try:
        yield load
    finally:
        load.ended = True
        thread.join(60)


def rotate_environ(running: Running) -> dict[str, str]:
    """The environment for a rotation: to a passphrase that is given, or on a laptop to one made."""
    return running.environ | ({} if running.uses_sqlite else {"SMA_NEW_CA_PASSWORD": OTHER})


def new_environ(running: Running) -> dict[str, str]:
    """The environment with the new secret."""
    return running.environ | ({} if running.uses_sqlite else {"CA_PASSWORD": OTHER})


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_rotation_under_load(start_server: Start, workers: int) -> None:
    """Threats 13 and 28. Threat 13: no row is left under the old key, and no request has failed.

    First answers are the same before, during and after. Threat 28: neither secret is written down.
    """
    running = start_server("--workers", str(workers), **MANY_TABLES)
    old = running.environ.get("CA_PASSWORD", "")
    if running.uses_sqlite:
        old = (running.server.data_dir / "ca-password").read_text().strip()
    with under_load(running) as load:
        time.sleep(1)
        ran = sma("secrets", "rotate", "--json", environ=rotate_environ(running))
        time.sleep(1)
    assert ran.returncode == 0, ran.stderr
    assert not load.wrong, load.wrong[:3]
    assert set(load.statuses) == {200}
    assert load.statuses.total() >= REQUESTS_A_SECOND * 4
    assert len(load.firsts) > 20

    told = json.loads(ran.stdout)
    assert told["left"] == {
        "key_tables": 0, "earlier_table_keys": 0, "first_answers": 0, "ca_keys": 0,
        "nuc_hash_keys": 0,
        "audit_keys": 0,
    }  # fmt: skip
    assert told["rewrapped"]["key_tables"] == 2_500
    for table in ("key_tables", "idempotent_responses", "key_encryption_keys", "audit_keys"):
        assert running.rows(f"SELECT DISTINCT kek_id FROM {table}") == [(2,)]
    new = OTHER
    if running.uses_sqlite:
        new = (running.server.data_dir / "ca-password").read_text().strip()
    written = running.server.said() + ran.stdout + ran.stderr
    assert found_in(written.encode(), {"old": old.encode(), "new": new.encode()}) == []
    assert "Traceback" not in running.server.said()
    with running.client() as client:
        document = client.get("/openapi.json").content
        assert found_in(document, {"old": old.encode(), "new": new.encode()}) == []
    assert running.server.terminate() == 0

    checked = sma("secrets", "check", "--json", environ=new_environ(running))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    refused = sma("secrets", "check", environ=running.environ | {"CA_PASSWORD": old})
    assert refused.returncode == 3
    assert len(refused.stderr.splitlines()) == 1
    again = start_server(**({} if running.uses_sqlite else {"CA_PASSWORD": OTHER}))
    with again.client() as client:
        token = wire(load.camera.token())
        assert client.post(VALIDATE, json=token).json()["validation_result"] == "PASS"
        body, header, first = load.firsts[0]
        name, _, value = header.strip().partition(": ")
        headers = {name: value, "Content-Type": "application/json"}
        assert client.post(PROVISION, content=body, headers=headers).content == first


def assert_opens(running: Running) -> None:
    """The authority opens with the old secret, or, where a rotation has ended, with the new one."""
    try:
        open_authority(load_settings({}, running.environ)).close()
    except WrongSecretError:
        open_authority(load_settings({}, new_environ(running))).close()


@pytest.mark.soak
def test_rotation_killed_again_and_again(start_server: Start) -> None:
    """Threat 30: killed at random moments beside a server at work, then brought to its end.

    After each kill the authority opens with the secret that is in place.
    """
    running = start_server(**MANY_TABLES)
    environ = rotate_environ(running)
    with under_load(running) as load:
        kills = times(5, 24)
        for number in range(kills):
            process = Background("secrets", "rotate", environ=environ)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1 + number * 1.5 / kills + random.random() * 0.3)
            process.kill()
            process.communicate()
            assert_opens(running)
        ran = sma("secrets", "rotate", "--json", environ=environ)
    assert ran.returncode == 0 or "already in force" in ran.stderr
    assert not load.wrong, load.wrong[:3]
    assert set(load.statuses) == {200}
    settings = load_settings({}, new_environ(running))
    with opened_database(settings) as database, database.read() as connection:
        assert count_outdated(connection).total == 0
    assert len(running.rows("SELECT kek_id FROM key_encryption_keys")) == 1
    checked = sma("secrets", "check", "--json", environ=new_environ(running))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_two_rotations_at_once(start_server: Start) -> None:
    """One of them does it; the other is told so, and has changed nothing."""
    running = start_server(**MANY_TABLES)
    environ = rotate_environ(running)
    both = [Background("secrets", "rotate", environ=environ) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.wait() for process in both) == [0, 5], said
    assert "Another rotation of this authority" in said[0] + said[1]
    assert running.rows("SELECT kek_id FROM key_encryption_keys") == [(2,)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_leaves_no_core(tmp_path: Path, start_server: Start, workers: int) -> None:
    """Threat 28: a crash writes no memory to disk."""
    running = start_server("--workers", str(workers))
    limits = Path(f"/proc/{running.server.process.pid}/limits").read_text()
    [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core.split()[-3:-1] == ["0", "0"]


def test_a_process_can_refuse_to_be_dumped() -> None:
    program = (
        "import ctypes, resource\n"
        "from birthmark_sma.runtime.core_dumps import forbid_core_dumps\n"
        "forbid_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "(0, 0) 0"
