"""A fleet of 1,000 moves from SQLite to PostgreSQL, with kills: every camera passes afterwards."""

import json
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.audit_rows import AuditWriter
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    csr_pem,
    new_key,
    provision_body,
    wire,
)
from tests.support.cameras.renewal import RenewingDevice
from tests.support.databases.postgres import Postgres
from tests.support.days import current_time
from tests.support.programs.commands import Background, sma
from tests.support.programs.running import Running, query, start, wait_until
from tests.support.programs.server import Server, server_environ

FLEET = 1_000
HISTORY = 60_000
A_BATCH = 1_000
BATCH = f"{VALIDATE}/batch"
REVOKED, SUSPENDED, RE_ENROLLED = "cam-0001", "cam-0002", "cam-0003"
SMALL = {"SMA_TABLES": "50", "SMA_CA_KEY_TYPE": "ec-p256"}
KILLS = 6


@dataclass
class Fleet:
    """The cameras, a token that was validated before, and a request that was answered before."""

    cameras: dict[str, Camera]
    seen: CameraToken
    request: dict[str, Any]
    answer: dict[str, Any]
    renewing: RenewingDevice


def found(running: Running, folder: Path) -> Fleet:
    """Let the authority live: devices, verdicts, acts, and fifty thousand rows of history."""

    def run(*arguments: str) -> None:
        done = sma(*arguments, environ=running.environ, cwd=folder)
        assert done.returncode == 0, (arguments, done.stderr)

    with running.client() as client, ThreadPoolExecutor(4) as pool:
        serials = [f"cam-{number:04}" for number in range(FLEET)]
        made = pool.map(lambda serial: Camera.provisioned(client, serial), serials)
        cameras = {each.serial: each for each in made}
        run("devices", "revoke", REVOKED, "--reason", "key_compromise", "--yes")
        run("devices", "suspend", SUSPENDED)
        run("devices", "re-enrol", RE_ENROLLED)
        proof = {"device_public_key": None, "csr": csr_pem(new_key(), RE_ENROLLED)}
        cameras[RE_ENROLLED] = Camera.provisioned(client, RE_ENROLLED, **proof)
        run("tables", "rotate", "1", "--yes")
        run("keys", "create", "aggregator", "--scope", "validate")
        request = provision_body("idempotent")
        repeated = {"Idempotency-Key": "move"}
        answer = client.post(PROVISION, json=request, headers=repeated)
        assert answer.status_code == 200
        seen = cameras["cam-0004"].token()
        assert client.post(VALIDATE, json=wire(seen)).json()["validation_result"] == "PASS"
        renewing = RenewingDevice.provisioned(client).renewed(client)
        assert judge(client, cameras) == expected(cameras)
    return Fleet(cameras, seen, request, answer.json(), renewing)


def judge(client: httpx2.Client, cameras: dict[str, Camera]) -> dict[str, str]:
    """Return the verdict on a new token of each camera, by its serial."""
    tokens = [wire(each.token()) for each in cameras.values()]
    answer = client.post(BATCH, json={"tokens": tokens})
    assert answer.status_code == 200, answer.text
    verdicts = [each["validation_result"] for each in answer.json()["results"]]
    return dict(zip(cameras, verdicts, strict=True))


def expected(cameras: dict[str, Camera]) -> dict[str, str]:
    """Return the right verdicts."""
    return {each: "FAIL" if each in {REVOKED, SUSPENDED} else "PASS" for each in cameras}


def add_history(running: Running) -> None:
    """Add two weeks of forgeries, which a server would take minutes to refuse."""
    writer, step = AuditWriter(), timedelta(days=14) / (HISTORY // A_BATCH)
    with running.database() as database:
        for ago in range(HISTORY // A_BATCH, 0, -1):
            at = current_time() - ago * step
            with database.write() as transaction:
                writer.write(transaction, [forgery(at, number) for number in range(A_BATCH)])


def forgery(at: datetime, number: int) -> AuditRow:
    """Return the audit row of a token that opens under no key."""
    return AuditRow(
        *(secrets.token_bytes(48), number % 50, number % 1_000, "FAIL", "not_opened"),
        *(None, at, "192.0.2.10"),
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A server on SQLite."""
    started = start(tmp_path / "data", "sqlite:", **SMALL)
    yield started
    started.server.close()


def test_a_fleet_moves(running: Running, own_postgres: Postgres, tmp_path: Path) -> None:
    """Killed at random times; the server of before is refused, and so is a half-moved database."""
    fleet = found(running, tmp_path)
    url = own_postgres.create_database("moved")
    environ = running.environ | {"DATABASE_URL": url}
    refused = sma("move", environ=environ, cwd=tmp_path)
    assert (refused.returncode, "A server or another" in refused.stderr) == (3, True)
    assert running.server.terminate() == 0
    add_history(running)

    codes = list(kill_often(environ, url, tmp_path))
    moved = sma("move", "--json", environ=environ, cwd=tmp_path)
    assert moved.returncode == 0, moved.stderr
    assert -signal.SIGKILL in codes
    proved = json.loads(moved.stdout)["proof"]
    if proved is not None:  # else the run before was killed after it had finished
        rows = {each["table"]: each["rows"] for each in proved["tables"]}
        counted = "SELECT count(*) FROM validation_history"
        assert [(rows["validation_history"],)] == query(running.database_url, counted)
        assert proved["chains_verified"] > HISTORY // A_BATCH
        assert proved["trail_findings"] == 0

    old = sma("serve", "--port", "0", environ=running.environ, cwd=tmp_path)
    assert old.returncode == 3
    passphrase = (running.server.data_dir / "ca-password").read_text().strip()
    new = {"CA_PASSWORD": passphrase}
    with (
        closing(Server(running.server.data_dir, database_url=url, environ=new)) as server,
        server.client() as client,
    ):
        assert judge(client, fleet.cameras) == expected(fleet.cameras)
        repeated = {"Idempotency-Key": "move"}
        again = client.post(PROVISION, json=fleet.request, headers=repeated)
        assert (again.status_code, again.json()) == (200, fleet.answer)
        assert client.post(VALIDATE, json=wire(fleet.seen)).json()["validation_result"] == "PASS"
        assert fleet.renewing.renewed(client).loaded != fleet.renewing.loaded
        late = Camera.provisioned(client, "late")
        assert client.post(VALIDATE, json=wire(late.token())).json()["device_serial"] == "late"
    newest = "SELECT repeat FROM validation_history WHERE encrypted_nuc_hash = ? ORDER BY id"
    assert query(url, newest, fleet.seen.encrypted_nuc_hash) == [(None,), ("replayed",)]
    acts = Counter(row[0] for row in query(url, "SELECT act FROM administrative_acts"))
    assert acts["authority.move"] == 1
    assert acts["device.revoke"] == acts["key-table.rotate"] == 1
    settings = server_environ(running.server.data_dir, url) | new
    looked = sma("doctor", "--json", "--whole-trail", environ=settings, cwd=tmp_path)
    findings = json.loads(looked.stdout)["findings"]
    assert [each for each in findings if each["state"] == "critical"] == []


def kill_often(environ: dict[str, str], url: str, folder: Path) -> Iterator[int]:
    """Start the move and kill it, again and again; yield the exit codes."""
    chance = random.Random()
    for number in range(KILLS):
        run = Background("move", environ=environ, cwd=folder)
        if number:
            time.sleep(chance.uniform(0.2, 0.4 + 0.4 * number))
        else:  # in the middle, however fast this machine is
            wait_until(lambda: bool(progress_of(url)), 60)
        run.send_signal(signal.SIGKILL)
        _, error = run.communicate()
        assert run.returncode in {0, -signal.SIGKILL}, error
        yield run.returncode or 0
        if run.returncode == 0:
            return
        if progress_of(url) is not None:
            refused = sma("serve", "--port", "0", environ=environ, cwd=folder)
            assert refused.returncode in {3, 4}
            assert "a part of an authority" in refused.stderr


def progress_of(url: str) -> int | None:
    """Return the number of rows that a half-moved database has, or None if it is not one."""
    if query(url, "SELECT to_regclass('move_progress') IS NULL")[0][0]:
        return None
    return int(query(url, "SELECT sum(rows_copied) FROM move_progress")[0][0])
