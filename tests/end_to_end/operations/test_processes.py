"""How many processes serve by default, and what happens if one of them cannot start."""

import os
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.databases.postgres import Postgres
from tests.support.programs.commands import sma
from tests.support.programs.running import start, wait_until, workers_of
from tests.support.programs.server import START_SECONDS, Server, server_environ
from tests.support.programs.workers import find_workers

BY_DEFAULT = {"SMA_WORKERS": ""}
ENDED_SECONDS = 10.0


def pinned(data_dir: Path, database_url: str, cores: set[int]) -> Server:
    """Start a server whose CPU affinity is these cores."""
    pin = partial(os.sched_setaffinity, 0, cores)
    return Server(data_dir, database_url=database_url, environ=BY_DEFAULT, before=[pin])


def is_running(pid: int) -> bool:
    """Whether a process exists, and is no zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_postgresql_gets_a_process_for_each_core(own_postgres: Postgres, tmp_path: Path) -> None:
    """A server on one core serves itself; on all cores it starts a process for each."""
    cores = os.sched_getaffinity(0)
    data_dir = tmp_path / "data"
    environ = server_environ(data_dir, own_postgres.url) | FEW_TABLES
    assert sma("init", environ=environ).returncode == 0
    with pinned(data_dir, own_postgres.url, {min(cores)}) as server:
        assert server.facts["processes"] == 1
        assert not find_workers(server.process.pid)
    two = set(sorted(cores)[:2])
    with pinned(data_dir, own_postgres.url, two) as server, server.client() as client:
        assert server.facts["processes"] == len(two)
        assert len(find_workers(server.process.pid)) == (len(two) if len(two) > 1 else 0)
        assert f"\nsma_workers {len(two)}.0\n" in client.get("/metrics").text


def test_a_database_with_few_connections_gets_one_process(
    postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL refuses connections beyond its limits, so two processes would fail under load."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        limit = f"ALTER DATABASE {connection.info.dbname} CONNECTION LIMIT 25"
        connection.execute(limit.encode())
    running = start(tmp_path / "data", postgres_url, **FEW_TABLES | BY_DEFAULT)
    with running.server as server:
        assert server.facts["processes"] == 1


def test_sqlite_gets_one_process(tmp_path: Path) -> None:
    """SQLite has one writer."""
    with start(tmp_path / "data", "sqlite:", **FEW_TABLES | BY_DEFAULT).server as server:
        assert server.facts["processes"] == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_process_outlives_its_killed_supervisor(start_server: Start) -> None:
    """Else the port would be taken when the server is started again."""
    running = start_server("--workers", "2")
    workers = workers_of(running)
    port = str(urlsplit(running.server.url).port)
    running.server.kill()
    wait_until(lambda: not any(map(is_running, workers)), 30)
    again = start_server("--workers", "2", "--port", port)
    assert again.server.terminate() == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_process_that_cannot_start_makes_the_exit_code(start_server: Start) -> None:
    """Programs that run services start a server again only if its exit code says that it failed."""
    running = start_server("--workers", "2")
    with psycopg.connect(running.database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'unknown'")
    os.kill(workers_of(running)[0], signal.SIGKILL)
    wait_until(lambda: running.server.process.poll() is not None, START_SECONDS)
    assert running.server.process.poll() == 1
    assert "a process could not start" in running.server.said()


def test_a_process_that_starts_in_an_outage_waits_for_its_end(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    """Else one process that dies in an outage would take all others with it."""
    running = start(tmp_path / "data", own_postgres.url, "--workers", "2", **FEW_TABLES)
    with running.server as server, running.client() as client:
        dies, stays = workers_of(running)
        own_postgres.stop()
        os.kill(dies, signal.SIGKILL)
        wait_until(lambda: "a new process waits for the database" in server.said(), START_SECONDS)
        own_postgres.start()
        wait_until(lambda: "\nsma_workers 2.0\n" in client.get("/metrics").text, START_SECONDS)
        assert stays in workers_of(running)
        wait_until(lambda: client.get("/health/ready").status_code == 200, START_SECONDS)
        assert server.terminate() == 0


def test_a_stop_signal_ends_a_process_that_waits_for_the_database(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    """Within the time of every other stop."""
    running = start(tmp_path / "data", own_postgres.url, "--workers", "2", **FEW_TABLES)
    with running.server as server:
        own_postgres.stop()
        os.kill(workers_of(running)[0], signal.SIGKILL)
        wait_until(lambda: "a new process waits for the database" in server.said(), START_SECONDS)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(2 * ENDED_SECONDS)
        assert time.monotonic() - began < ENDED_SECONDS


def cores_of(workers: list[int]) -> list[frozenset[int]]:
    """Return the cores of each worker that still runs."""
    found = []
    for each in workers:
        with suppress(ProcessLookupError):
            found.append(frozenset(os.sched_getaffinity(each)))
    return found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_replaced_process_gets_the_core_of_the_dead_one(start_server: Start) -> None:
    """Else two of them share one core, and another core is idle until the next restart."""
    running = start_server("--workers", "2")
    stays, dies = workers_of(running)
    for _ in range(2):
        os.kill(dies, signal.SIGKILL)

        def is_replaced(dead: int = dies) -> bool:
            alive = set(workers_of(running)) - {dead}  # a killed one is listed a moment longer
            return len(alive) == 2 and all(len(cores) == 1 for cores in cores_of(list(alive)))

        wait_until(is_replaced, START_SECONDS)
        alive = workers_of(running)
        assert stays in alive
        assert len(set(cores_of(alive))) == min(2, len(os.sched_getaffinity(0)))
        [dies] = set(alive) - {stays}
