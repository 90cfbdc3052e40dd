"""A backup under load, restored elsewhere: nothing that was acknowledged before it is missing."""

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.storage.postgresql.server_role import SERVER_ROLE
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.postgres import Postgres
from tests.support.programs.commands import Background, sma
from tests.support.programs.load import Connection
from tests.support.programs.running import Running, new_serial, query, wait_until
from tests.support.programs.server import Server, server_environ

PER_SECOND = 500
TOGETHER = 10  # tokens a request: this machine seals and sends them as well


class Passed(NamedTuple):
    """A token that passed, and when it was sent and answered."""

    sent: float
    answered: float
    token: CameraToken


GRANTS = (
    "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
    " WHERE grantee = ? ORDER BY table_name, privilege_type"
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL of the test's own: the doctor finds fault with one that is forgetful."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'data' / 'sma.db'}"
        return
    own: Postgres = request.getfixturevalue("own_postgres")
    yield own.create_database("before")


@pytest.fixture
def programs(postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put pg_dump and pg_restore of the tests' PostgreSQL first on PATH."""
    monkeypatch.setenv("PATH", f"{postgres_binaries}:{os.environ['PATH']}")


class Load(threading.Thread):
    """Sends up to PER_SECOND tokens a second until it is stopped, and notes those that pass."""

    def __init__(self, url: str, camera: Camera) -> None:
        super().__init__(daemon=True)
        self.passed: list[Passed] = []
        self.faults: list[int] = []
        self._url = url
        self._camera = camera
        self._stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._send())

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    async def _send(self) -> None:
        began = time.monotonic()
        connections = 8
        await asyncio.gather(*(self._one(began, n, connections) for n in range(connections)))

    async def _one(self, began: float, number: int, of: int) -> None:
        connection = await Connection.open(self._url)
        while not self._stopping.is_set():
            await asyncio.sleep(max(began + number * TOGETHER / PER_SECOND - time.monotonic(), 0))
            number += of
            tokens = [self._camera.token(key_index=index) for index in range(TOGETHER)]
            body = json.dumps({"tokens": [wire(token) for token in tokens]}).encode()
            sent = time.monotonic()
            answer = await connection.ask("POST", f"{VALIDATE}/batch", body)
            told = answer.json()["results"] if answer.status == 200 else []
            if [each["validation_result"] for each in told] == ["PASS"] * TOGETHER:
                self.passed += [Passed(sent, time.monotonic(), token) for token in tokens]
            else:
                self.faults.append(answer.status)
        connection.close()


def test_a_backup_under_load(
    start_server: Start, own_postgres: Postgres, programs: None, tmp_path: Path
) -> None:
    """Restored elsewhere: the doctor is content, all rows are there, and its cameras pass."""
    running = start_server()
    with running.client() as client:
        cameras = [Camera.provisioned(client, new_serial()) for _ in range(20)]
    load = Load(running.server.url, cameras[0])
    load.start()
    wait_until(lambda: len(load.passed) >= 2 * PER_SECOND, 60)
    folder = tmp_path / "backup"
    began = time.monotonic()
    made = sma("backup", str(folder), "--json", environ=running.environ)
    ended = time.monotonic()
    wait_until(lambda: load.passed[-1].sent > ended, 60)
    load.stop()
    assert made.returncode == 0, made.stderr
    assert load.faults == []
    before = [each for each in load.passed if each.answered < began]
    rate = len(before) / (began - before[0].answered)  # of this machine, at most PER_SECOND
    assert len(load.passed) >= 0.8 * rate * (load.passed[-1].answered - before[0].answered)

    environ, url = elsewhere(running, own_postgres, tmp_path)
    restored = sma("restore", str(folder), "--json", environ=environ)
    assert restored.returncode == 0, restored.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    proof = json.loads(restored.stdout)
    assert proof["devices_verified"] == len(cameras)
    assert proof["rows"] == sum(manifest["rows"].values())

    kept = {
        bytes(sealed)
        for (sealed,) in query(url, "SELECT encrypted_nuc_hash FROM validation_history")
    }
    assert len(kept) == manifest["rows"]["validation_history"]
    after = [each for each in load.passed if each.sent > ended]
    assert [each for each in before if each.token.encrypted_nuc_hash not in kept] == []
    assert after
    assert [each for each in after if each.token.encrypted_nuc_hash in kept] == []

    looked = sma("doctor", "--json", environ=environ)
    assert looked.returncode == 0, looked.stdout
    assert_chained_and_known(running, environ, url)
    with (
        Server(tmp_path / "elsewhere", database_url=environ.get("DATABASE_URL")) as server,
        server.client() as client,
    ):
        for camera in cameras:
            answer = client.post(VALIDATE, json=wire(camera.token())).json()
            assert answer["validation_result"] == "PASS"


def assert_chained_and_known(running: Running, environ: dict[str, str], url: str) -> None:
    """The chains verify, the data directory knows its authority, and servers may what they may."""
    verified = sma("audit", "verify", "--json", environ=environ)
    assert verified.returncode == 0, verified.stdout
    directories = (running.server.data_dir, Path(environ["SMA_DATA_DIR"]))
    first, second = (json.loads((each / "authority.json").read_text()) for each in directories)
    assert first["authority_id"] == second["authority_id"]
    if not running.uses_sqlite:
        assert query(url, GRANTS, SERVER_ROLE) == running.rows(GRANTS, SERVER_ROLE) != []


def elsewhere(
    running: Running, own_postgres: Postgres, tmp_path: Path
) -> tuple[dict[str, str], str]:
    """Another, empty place of the same kind, and the secret that opens the backup."""
    place = tmp_path / "elsewhere"
    place.mkdir(mode=0o700)
    if not running.uses_sqlite:
        url = own_postgres.create_database("after")
        return server_environ(place, url) | {"CA_PASSWORD": running.environ["CA_PASSWORD"]}, url
    shutil.copy2(running.server.data_dir / "ca-password", place / "ca-password")
    return server_environ(place), f"sqlite:///{place / 'sma.db'}"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_backup_that_is_killed(start_server: Start, tmp_path: Path) -> None:
    """Threat 29: it leaves nothing with the name of a backup, and the next one takes its place."""
    running = start_server()
    folder = tmp_path / "backup"
    hidden = tmp_path / ".backup.sma-backup"
    killed = False
    for _ in range(20):
        process = Background("backup", str(folder), environ=running.environ)
        while process.poll() is None and not hidden.exists():
            time.sleep(0.001)
        process.kill()
        process.communicate()
        if hidden.exists():
            killed = True
            break
        shutil.rmtree(folder, ignore_errors=True)
    assert killed
    assert not folder.exists()
    made = sma("backup", str(folder), environ=running.environ)
    assert made.returncode == 0, made.stderr
    assert not hidden.exists()
