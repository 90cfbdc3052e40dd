"""Connections that cannot write any more: they leave the pool, and no restart is needed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, text

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import execute, rows_of
from tests.support.databases.postgres import Postgres
from tests.support.programs.running import wait_until

POOLED = 5


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """Open the database of this test, with a table in it and a full pool of connections."""
    database = open_database(postgres_url)
    execute(database, "CREATE TABLE noted (number integer)")
    fill_pool(database)
    yield database
    database.close()


def fill_pool(database: Database) -> set[int]:
    """Open as many connections as the pool keeps; return the processes of the server for them."""
    with contextlib.ExitStack() as taken:
        connections = [taken.enter_context(database.read()) for _ in range(POOLED)]
        ask = text("SELECT pg_backend_pid()")
        return {int(connection.execute(ask).scalar_one()) for connection in connections}


def note(database: Database, number: int) -> None:
    """Note a number, as all writers note what they do."""
    insert = text("INSERT INTO noted VALUES (:number)")
    database.transact(lambda transaction: transaction.execute(insert, {"number": number}))


def noted(database: Database) -> list[int]:
    """Return the numbers that were noted."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


def set_by_administrator(url: str, *statements: str) -> None:
    """Run statements over a connection of their own, outside of a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            connection.execute(statement.encode())


def end_all(url: str) -> None:
    """End all other connections to this database."""
    set_by_administrator(
        url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


def assert_read_only(database: Database) -> None:
    """Assert that nothing can be noted, and that operators are told why."""
    with pytest.raises(DatabaseUnavailableError) as raised:
        note(database, 0)
    assert raised.value.fault is DatabaseFault.READ_ONLY
    assert "target_session_attrs=read-write" in raised.value.advice


def test_read_only_for_new_connections(database: Database, postgres_url: str) -> None:
    """Sessions that began in the meantime are read-only for good: none of them is kept."""
    name = sql.Identifier(urlsplit(postgres_url).path.removeprefix("/")).as_string()
    set_by_administrator(
        postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only=on"
    )
    end_all(postgres_url)
    assert_read_only(database)
    fill_pool(database)  # with sessions that stay read-only
    set_by_administrator(postgres_url, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    note(database, 1)
    assert noted(database) == [1]


def test_read_only_in_place(own_postgres: Postgres) -> None:
    """As some hosting platforms do when a disk is nearly full."""
    database = open_database(own_postgres.create_database("sma"))
    execute(database, "CREATE TABLE noted (number integer)")
    fill_pool(database)
    for step, value in enumerate(("on", "off", "on", "off")):
        set_by_administrator(
            own_postgres.url,
            f"ALTER SYSTEM SET default_transaction_read_only = {value}",
            "SELECT pg_reload_conf()",
        )
        shown = f"SELECT 1 WHERE current_setting('default_transaction_read_only') = '{value}'"
        wait_until(lambda shown=shown: rows_of(database, shown) == [(1,)], 10)  # type: ignore[misc]
        if value == "on":
            assert_read_only(database)
        else:
            note(database, step)
    assert noted(database) == [1, 3]
    database.close()


def test_the_node_that_can_write_is_found(own_postgres: Postgres, postgres_binaries: Path) -> None:
    """Where the URL names several hosts, a node that became read-only is left for another one."""
    with Postgres(binaries=postgres_binaries) as second:
        ours, theirs = urlsplit(own_postgres.url), urlsplit(second.url)
        set_by_administrator(second.url, f"ALTER ROLE sma PASSWORD '{ours.password}'")
        hosts = f"127.0.0.1:{ours.port},127.0.0.1:{theirs.port}"
        database = open_database(f"postgresql://sma:{ours.password}@{hosts}/postgres")
        for url in (
            own_postgres.url,
            second.url.replace(theirs.password or "", ours.password or ""),
        ):
            set_by_administrator(url, "CREATE TABLE noted (number integer)")
        note(database, 1)
        fill_pool(database)
        set_by_administrator(
            own_postgres.url,
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        )
        shown = "SELECT 1 WHERE current_setting('default_transaction_read_only') = 'on'"
        wait_until(lambda: rows_of(database, shown) == [(1,)], 10)
        note(database, 2)
        assert noted(database) == [2], "it was not the other node that took it"
        database.close()


def test_an_administrator_ends_all_connections(
    database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Idle ones, and one in the middle of a transaction: its work is done again."""
    caplog.set_level("INFO")
    before = fill_pool(database)
    end_all(postgres_url)
    note(database, 1)
    attempts = []

    def work(transaction: Connection) -> None:
        attempts.append(transaction.execute(text("SELECT pg_backend_pid()")).scalar_one())
        if len(attempts) == 1:
            end_all(postgres_url)
        transaction.execute(text("INSERT INTO noted VALUES (2)"))

    database.transact(work)
    assert noted(database) == [1, 2]
    assert len(attempts) == 2
    told = [each for each in caplog.messages if "over a new connection" in each]
    assert len(told) == 1
    assert "an administrator ended the connection" in told[0]
    assert not before & fill_pool(database)


def test_an_error_of_the_work_leaves_the_pool_alone(database: Database) -> None:
    """Only what says that a connection is unusable empties it."""
    before = fill_pool(database)
    with pytest.raises(DatabaseUnavailableError) as raised:
        rows_of(database, "SELECT * FROM nowhere")
    assert raised.value.fault is DatabaseFault.SCHEMA
    assert fill_pool(database) == before
