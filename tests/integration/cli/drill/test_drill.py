"""`sma drill` from the command to the report, and the report against the copy's own rows.

The programs are those that operators run, because a drill starts a server of its own.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.integration.cli.conftest import assert_refused
from tests.support.programs.running import children_of, query, wait_until
from tests.support.programs.server import REAL_SMA, server_environ
from tests.support.soak import SOAKING, tell, times

DEVICES = times(60, 10_000)
WITHIN = times(20, 400)
SECONDS = times(200, 1_500)
SLOW_ANSWER_SECONDS = 5.0
"""On a busy machine, between the commit of a renewal and its answer."""


@dataclass(frozen=True)
class Drilled:
    """A report, and the database of the copy that was kept."""

    report: dict[str, Any]
    url: str

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return rows of the copy."""
        return query(self.url, statement, *parameters)

    def one(self, statement: str, *parameters: object) -> Any:
        """Return the only value of a query on the copy."""
        [(value,)] = self.rows(statement, *parameters)
        return value

    def after(self, seconds: float) -> datetime:
        """Return the time so long after the decision."""
        return datetime.fromisoformat(self.report["decided_at"]) + timedelta(seconds=seconds)


def sma(environ: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*REAL_SMA, *arguments],
        env=environ,
        cwd=Path(environ["SMA_DATA_DIR"]).parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of an authority with one device, which no test may change."""
    data_dir = tmp_path_factory.mktemp("founded") / "data"
    environ = server_environ(data_dir)
    assert sma(environ, "init").returncode == 0
    assert sma(environ, "provision", "camera-of-the-source").returncode == 0
    return data_dir


@pytest.fixture
def source(founded: Path, tmp_path: Path) -> Path:
    """The data directory of an authority of this test's own."""
    shutil.copytree(founded, tmp_path / "data")
    return tmp_path / "data"


def rehearse(environ: Mapping[str, str], cause: str, kept: Path) -> Drilled:
    """Run a drill whose marks must hold, and keep the copy."""
    result = sma(
        environ,
        *("drill", cause, "--devices", str(DEVICES), "--within", f"{WITHIN}s"),
        *("--keep", str(kept), "--json"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    url = f"sqlite:///{kept}/data/sma.db"
    if "DATABASE_URL" in environ:
        parts: dict[str, Any] = conninfo_to_dict(environ["DATABASE_URL"])
        url = make_conninfo(**parts | {"dbname": report["copy"]["database"]})
    return Drilled(report, url)


def check(drilled: Drilled) -> None:
    """Recompute by SQL what the database of the copy knows about the report."""
    report, load = drilled.report, drilled.report["load"]
    devices = report["devices"]
    ours = "SELECT count(*) FROM registered_devices WHERE substr(device_serial, 1, 4) = 'sim-'"
    assert drilled.one(ours) == devices["simulated"] == DEVICES
    renewed = drilled.one(f"{ours} AND certificate_renewed_at IS NOT NULL")
    assert renewed == devices["renewed"] == devices["concerned"]
    superseded = "SELECT count(*) FROM revoked_certificates WHERE revocation_reason = 'superseded'"
    assert drilled.one(superseded) == renewed, "each old certificate, and no other"
    assert drilled.one("SELECT sum(matched) FROM renewal_orders") == devices["in_the_order"]
    verdicts = dict(
        drilled.rows(
            "SELECT validation_result, count(*) FROM validation_history GROUP BY validation_result"
        )
    )
    assert (verdicts.get("PASS", 0), verdicts.get("FAIL", 0)) == (load["passed"], load["failed"])
    check_curve(drilled)
    check_exposure(drilled)


def check_curve(drilled: Drilled) -> None:
    """The curve of the renewals is that of the register. A device learns of its own a bit later."""
    renewals = drilled.report["renewals"]
    opened = drilled.after(drilled.report["seconds"]["to_order"])
    times_of = sorted(
        (as_time(at) - opened).total_seconds()
        for (at,) in drilled.rows(
            "SELECT certificate_renewed_at FROM registered_devices"
            " WHERE certificate_renewed_at IS NOT NULL"
        )
    )
    assert sum(renewals["done"]) == sum(renewals["planned"]) == len(times_of)
    for n in range(len(renewals["done"])):
        end = renewals["seconds_of_a_part"] * (n + 1)
        told = sum(renewals["done"][: n + 1])
        at_least = sum(each < end - SLOW_ANSWER_SECONDS for each in times_of)
        at_most = sum(each < end + 1.0 for each in times_of)
        assert at_least <= told <= at_most
    last = drilled.report["seconds"]["to_last_renewal"] - drilled.report["seconds"]["to_order"]
    assert last == pytest.approx(times_of[-1], abs=1.0)


def check_exposure(drilled: Drilled) -> None:
    exposure = drilled.report["exposure"]
    leaked = set(exposure["tables"])
    shared: dict[str, int] = {"1": 0, "2": 0, "3": 0}
    for serial, tables in drilled.rows(
        "SELECT device_serial, table_assignments FROM registered_devices"
    ):
        listed = json.loads(tables) if isinstance(tables, str) else tables
        number = len(leaked & set(listed))
        if number and serial != exposure["camera"]:
            shared[str(number)] += 1
    assert exposure["devices_by_shared_tables"] == shared
    assert exposure["devices"] == sum(shared.values())


def as_time(value: Any) -> datetime:
    """Return a time of the database: text or microseconds in SQLite."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    assert isinstance(value, datetime)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


@pytest.mark.soak
def test_each_cause(source: Path, tmp_path: Path) -> None:
    """Each report is true, and the source is as it was. `make soak` plays all causes."""
    before = contents_of(source)
    causes = {"app-version": check_faulty_devices, "key-table": check_leaked_tables}
    if SOAKING:
        causes |= {"intermediate-key": check_lost_intermediate, "family": check_faulty_devices}
    with ThreadPoolExecutor(times(len(causes), 1)) as threads:
        drills = {
            cause: threads.submit(rehearse, server_environ(source), cause, tmp_path / cause)
            for cause in causes
        }
        for cause, drill in drills.items():
            drilled = drill.result()
            check(drilled)
            causes[cause](drilled)
            if SOAKING:
                tell(json.dumps(drilled.report, indent=1))
    assert contents_of(source) == before


def check_lost_intermediate(drilled: Drilled) -> None:
    """All devices end under the new one."""
    under = dict(
        drilled.rows(
            "SELECT certificate_issuer, count(*) FROM registered_devices"
            " WHERE substr(device_serial, 1, 4) = 'sim-' GROUP BY certificate_issuer"
        )
    )
    assert under == {"intermediate-2": DEVICES}
    # A device of the source is under the lost one, too; nobody renews it here.
    of_source = drilled.one("SELECT count(*) FROM registered_devices") - DEVICES
    assert drilled.report["devices"]["in_the_act"] == DEVICES + of_source
    [state] = drilled.rows("SELECT state FROM ca_certificates WHERE name = 'intermediate'")
    assert state == ("compromised",)


def check_faulty_devices(drilled: Drilled) -> None:
    """They stop in one act and come back; the others never fail."""
    faulty = DEVICES * 8 // 10
    assert drilled.report["devices"]["concerned"] == faulty
    assert drilled.report["devices"]["in_the_act"] == faulty
    [(reinstated,)] = drilled.rows(
        "SELECT DISTINCT status_changed_at FROM registered_devices"
        " WHERE status_changed_at IS NOT NULL"
    )
    passes = [
        as_time(at)
        for (at,) in drilled.rows(
            "SELECT h.validated_at FROM validation_history h JOIN registered_devices d"
            " ON d.device_serial = h.device_serial"
            " WHERE h.validation_result = 'PASS' AND d.status_changed_at IS NOT NULL"
        )
    ]
    committed = drilled.after(drilled.report["seconds"]["to_commit"])
    assert [at for at in passes if committed < at < as_time(reinstated)] == []
    assert min(passes) < committed < as_time(reinstated) < max(passes)


def check_leaked_tables(drilled: Drilled) -> None:
    """The thief forges until the overlap ends, and not a moment longer."""
    stolen = drilled.report["exposure"]["camera"]
    [(status, reason)] = drilled.rows(
        "SELECT status, status_reason FROM registered_devices WHERE device_serial = ?", stolen
    )
    assert (status, reason) == ("revoked", "key_compromise")
    assert drilled.rows("SELECT 1 FROM earlier_table_keys") == []
    late = drilled.one("SELECT count(*) FROM validation_history WHERE reason = 'not_opened'")
    # Among few devices it happens that none shares a table with another one.
    assert drilled.report["exposure"]["forged_for_a_victim"] == bool(late)
    assert bool(drilled.report["wrong_passes"]) == bool(late)


def test_on_postgresql(postgres_url: str, postgres_binaries: Path, tmp_path: Path) -> None:
    """The copy is a database of its own, and stays if it is kept."""
    environ = server_environ(tmp_path / "data", postgres_url)
    environ["PATH"] = f"{postgres_binaries}:{os.environ['PATH']}"
    assert sma(environ, "init").returncode == 0
    drilled = rehearse(environ, "intermediate-key", tmp_path / "kept")
    try:
        check(drilled)
        check_lost_intermediate(drilled)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            name = drilled.report["copy"]["database"]
            connection.execute(f'DROP DATABASE "{name}"'.encode())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["intermediate-key", "nobody"], 5, "nobody"),
        (["key-table", "first"], 3, "Write their ids"),
        (["key-table", "2500"], 5, "the tables 0 to 2499"),
    ],
)
def test_what_cannot_be_rehearsed(
    founded: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    """It ends with a sentence before a device is provisioned, and leaves nothing behind."""
    result = sma(server_environ(founded) | {"TMPDIR": str(tmp_path)}, "drill", *arguments)
    assert_refused(result, code, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flood"], "intermediate-key, family, app-version, key-table"),
        (["family", "--devices", "9"], "greater than or equal to 10"),
        (["family", "--within", "soon"], "is no duration"),
        (["family", "--within", "0"], "at least a second"),
    ],
)
def test_wrong_usage(founded: Path, arguments: list[str], words: str) -> None:
    result = sma(server_environ(founded), "drill", *arguments)
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]


def test_without_the_key_of_the_root(source: Path) -> None:
    """The key is kept elsewhere, as it should be: the sentence says how to name it."""
    (source / "simulated-mfg-root-ca.key").unlink()
    result = sma(server_environ(source), "drill", "intermediate-key")
    assert_refused(result, 3, "root")


def test_without_an_authority(tmp_path: Path) -> None:
    assert_refused(sma(server_environ(tmp_path / "data"), "drill", "family"), 4, "sma init")


def test_a_drill_that_is_stopped(source: Path, tmp_path: Path) -> None:
    """Ctrl-C gives a report, kill -9 leaves no server; the source is as it was."""
    before = contents_of(source)
    for number in (signal.SIGINT, signal.SIGKILL):
        drill = subprocess.Popen(
            [*REAL_SMA, "drill", "family", "--devices", "10", "--within", "1h", "--json"],
            env=server_environ(source) | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        pid = drill.pid
        wait_until(lambda pid=pid: bool(children_of(pid)), 30)  # type: ignore[misc]
        [server] = children_of(pid)
        time.sleep(6)  # the devices are provisioned meanwhile
        drill.send_signal(number)
        said, _ = drill.communicate(timeout=60)
        wait_until(lambda server=server: not is_running(server), 30)  # type: ignore[misc]
        if number == signal.SIGINT:
            assert drill.returncode == 1
            assert json.loads(said)["stopped"]
            assert list(tmp_path.glob("sma-drill-*")) == []
    assert contents_of(source) == before


def is_running(pid: int) -> bool:
    """Return whether a process is there and not only waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def contents_of(data_dir: Path) -> list[list[tuple[Any, ...]]]:
    """Return all rows of the source, by table."""
    with closing(sqlite3.connect(data_dir / "sma.db")) as file:
        tables = file.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [file.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables.fetchall()]
