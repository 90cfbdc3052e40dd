"""`sma audit verify` over a million rows, from the database and from an export of it.

`make soak` runs these and prints the times.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from birthmark_sma.authority.initialisation import record_migration
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import migrate
from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.audit_rows import append_rows
from tests.support.authorities import migrate_to
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.counting import assert_the_chains_verify
from tests.support.databases.chained_trail import make_row
from tests.support.days import current_time
from tests.support.devices.actors import ACTOR
from tests.support.programs.load import ask_all
from tests.support.programs.running import new_serial
from tests.support.programs.server import SMA
from tests.support.soak import tell

ROWS = 1_000_000
IN_A_BATCH = 1_000
BATCHES = ROWS // IN_A_BATCH
CONNECTIONS = 2
DIFFERENT = 10
"""So many batches differ. They are sent again and again, and a repeat has a row of its own."""
VERIFIED_SECONDS = 60.0
MOST_MEGABYTES = 300.0
DAYS = 10
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""
"""A process counts the memory of the one that it was forked from, so pytest cannot be that one."""
CHANGE = "UPDATE validation_history SET validation_result = 'FAIL' WHERE id = :id"


@dataclass(frozen=True)
class Ran:
    """A command that has ended: exit code, JSON, seconds, and the most memory that it had."""

    code: int
    said: dict[str, Any]
    seconds: float
    megabytes: float

    def tell(self, what: str) -> None:
        """Print the figures."""
        tell(f"{what}, {ROWS:,} rows: {self.seconds:.1f} s, {self.megabytes:.0f} MB")


def run(environ: Mapping[str, str], *arguments: str) -> Ran:
    """Run `sma` with `--json`, below a small process that prints the most memory that it had."""
    began = time.monotonic()
    command = [sys.executable, "-c", MEASURE, *SMA, *arguments, "--json"]
    ran = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    *_, kilobytes = ran.stderr.split()
    return Ran(ran.returncode, json.loads(ran.stdout), seconds, int(kilobytes) / 1024)


def fill(url: str, camera: Camera) -> None:
    """Let a server write the rows."""
    bodies = [
        json.dumps({"tokens": [wire(camera.token()) for _ in range(IN_A_BATCH)]}).encode()
        for _ in range(DIFFERENT)
    ]
    sent = bodies * (BATCHES // DIFFERENT)
    asking = ask_all(url, f"{VALIDATE}/batch", sent, connections=CONNECTIONS)
    assert {each and each.status for each in asyncio.run(asking)} == {200}


@pytest.mark.measured
def test_rows_of_a_server(start_server: Start, tmp_path: Path) -> None:
    """They are verified within a minute, and a row that was changed is named."""
    running = start_server("--access", "open", "--rate-validate", "none", **FEW_TABLES)
    kind = "SQLite" if running.uses_sqlite else "PostgreSQL"
    with running.client() as client:
        fill(running.server.url, Camera.provisioned(client, new_serial()))
    assert running.server.terminate() == 0
    clean = run(running.environ, "audit", "verify")
    clean.tell(f"{kind}: verify")
    assert (clean.code, clean.said["rows"]) == (0, ROWS)
    export = str(tmp_path / "trail.jsonl")
    run(running.environ, "audit", "export", "--output", export).tell(f"{kind}: export")
    elsewhere = run({}, "audit", "verify", "--export", export)
    elsewhere.tell(f"{kind}: verify the export")
    assert (elsewhere.code, elsewhere.said["rows"]) == (0, ROWS)
    [(changed,)] = running.rows("SELECT max(id) FROM validation_history")
    with running.database() as database, database.write() as transaction:
        transaction.execute(text(CHANGE), {"id": changed})
    named = run(running.environ, "audit", "verify")
    assert named.code == 1
    assert [each["what"] for each in named.said["findings"]] == [f"row {changed}"]
    assert clean.seconds < VERIFIED_SECONDS
    assert max(clean.megabytes, elsewhere.megabytes) < MOST_MEGABYTES


def earlier_rows() -> Iterator[list[AuditRow]]:
    """Yield the rows of ten days in batches, oldest first."""
    began = current_time() - timedelta(days=DAYS)
    for batch in range(BATCHES):
        at = began + timedelta(days=DAYS) / BATCHES * batch
        yield [make_row(at, batch * IN_A_BATCH + row) for row in range(IN_A_BATCH)]


@pytest.mark.measured
def test_rows_from_before_there_were_chains(database_url: str) -> None:
    """The migration chains them while servers stand still. Then they are verified."""
    with closing(open_database(database_url)) as database:
        migrate_to(database, "0015")
        for rows in earlier_rows():
            with database.write() as transaction:
                append_rows(transaction, rows)
        began = time.monotonic()
        migrate(database, partial(record_migration, ACTOR))
        migrated = time.monotonic()
        assert_the_chains_verify(database)
        kind, verified = database.dialect_name, time.monotonic() - migrated
    tell(f"{kind}: migration of {ROWS:,} rows {migrated - began:.1f} s, verified {verified:.1f} s")
    assert verified < VERIFIED_SECONDS
