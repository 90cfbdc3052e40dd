"""Opening a database and transactions on it: what is durable, and what an outage looks like."""

import contextlib
import sqlite3
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy import event, exc, text

from birthmark_sma.errors import BirthmarkError, ConfigurationError, DatabaseUnavailableError
from birthmark_sma.storage import engine
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import execute, rows_of
from tests.support.databases.postgres import Postgres, create_database, drop_database

SECRET = "c0rrect-horse-battery"


def noted(database: Database) -> list[int]:
    """Return the numbers that are in the database."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


def note(database: Database, number: int) -> None:
    """Put a number into the database."""
    execute(database, "INSERT INTO noted VALUES (:number)", number=number)


def in_one_block(database: Database, *steps: str | Callable[[], None]) -> None:
    """Take steps in one transaction: statements, and whatever else happens meanwhile."""
    with database.write() as transaction:
        for step in steps:
            if isinstance(step, str):
                transaction.execute(text(step))
            else:
                step()


@pytest.fixture
def notes(empty_database: Database) -> Database:
    """A database with a table for numbers."""
    execute(empty_database, "CREATE TABLE noted (number integer PRIMARY KEY)")
    return empty_database


# --- transactions, on both kinds


def test_what_was_written_is_there(notes: Database) -> None:
    """A block that ends without an error is committed."""
    note(notes, 1)
    assert noted(notes) == [1]
    notes.ping()


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), ConfigurationError()])
def test_an_error_undoes_the_whole_block(notes: Database, error: BaseException) -> None:
    """A block that ends with an error never happened, and the error comes through unchanged."""
    note(notes, 1)

    def stumble() -> None:
        raise error

    statements = "INSERT INTO noted VALUES (2)", "DELETE FROM noted WHERE number = 1"
    with pytest.raises(type(error)) as raised:
        in_one_block(notes, *statements, stumble)
    assert raised.value is error
    assert noted(notes) == [1]


def test_a_statement_that_fails_undoes_what_came_before(notes: Database) -> None:
    """A constraint that is broken half way leaves no half."""
    note(notes, 1)
    with pytest.raises(Exception, match="noted"):
        in_one_block(notes, "INSERT INTO noted VALUES (2)", "INSERT INTO noted VALUES (1)")
    assert noted(notes) == [1]
    note(notes, 3)
    assert noted(notes) == [1, 3]


def test_readers_do_not_see_what_is_not_committed(notes: Database) -> None:
    """A reader neither waits for a writer nor sees its unfinished work."""
    with notes.write() as transaction:
        transaction.execute(text("INSERT INTO noted VALUES (1)"))
        assert noted(notes) == []
    assert noted(notes) == [1]


def test_writers_on_many_threads_lose_nothing(notes: Database) -> None:
    """Eight threads that count up one number arrive at the sum."""
    note(notes, 0)

    def count_up() -> None:
        for _ in range(10):
            execute(notes, "UPDATE noted SET number = number + 1")

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert noted(notes) == [80]


def test_committed_rows_outlive_the_program(notes: Database, database_url: str) -> None:
    """Another program finds what was committed."""
    note(notes, 1)
    notes.close()
    another = open_database(database_url)
    assert noted(another) == [1]
    another.close()


def test_the_dialect_has_a_name(empty_database: Database, database_url: str) -> None:
    """Operators are told which database they have."""
    assert database_url.startswith(empty_database.dialect_name)


def test_an_error_of_the_database_shows_no_parameter(notes: Database) -> None:
    """Threat 28: values on their way into the database do not come out in a traceback."""
    execute(notes, "CREATE TABLE kept (words varchar(9) CHECK (length(words) < 10))")
    with pytest.raises(Exception, match="INSERT INTO kept") as refused:
        execute(notes, "INSERT INTO kept VALUES (:words)", words=SECRET)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


# --- SQLite


def sqlite_at(path: Path) -> Database:
    """Open SQLite in a file."""
    return open_database(f"sqlite:///{path}")


def test_sqlite_survives_a_power_cut(tmp_path: Path) -> None:
    """Threat 30: WAL with synchronous=FULL is in force on every connection, reading or writing."""
    database = sqlite_at(tmp_path / "sma.db")
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    opens: tuple[Callable[[], Any], ...] = (database.read, database.write)
    for transaction in opens:
        with transaction() as connection:
            found = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in wanted}
        assert found == wanted
    with database.read() as first, database.read() as second:
        assert second.execute(text("PRAGMA synchronous")).scalar() == 2
        assert first.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()


def test_sqlite_reads_one_snapshot(tmp_path: Path) -> None:
    """Two questions in one block get answers of one moment."""
    database = sqlite_at(tmp_path / "sma.db")
    execute(database, "CREATE TABLE noted (number integer)")
    with database.read() as connection:
        count = text("SELECT count(*) FROM noted")
        before = connection.execute(count).scalar()
        note(database, 1)
        assert connection.execute(count).scalar() == before == 0
    database.close()


@pytest.mark.parametrize(
    "name", ["a space", "per%20cent", "a#hash", "what?now", "a&b=c", "Süd", "semi;colon"]
)
def test_sqlite_lies_where_the_path_says(tmp_path: Path, name: str) -> None:
    """A data directory may have any name that the file system allows."""
    folder = tmp_path / name
    folder.mkdir()
    database = sqlite_at(folder / "sma.db")
    database.ping()
    database.close()
    assert (folder / "sma.db").exists()


def test_a_full_disk_is_an_outage(tmp_path: Path) -> None:
    """Threat 19: SQLite without room left is away, and what it had stays."""
    database = sqlite_at(tmp_path / "sma.db")
    execute(database, "CREATE TABLE noted (number integer, padding blob)")
    limit = [0]

    @event.listens_for(database.engine, "begin")
    def _limit(connection: Any) -> None:
        if limit[0]:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")

    limit[0] = 1  # SQLite makes it as many pages as there are
    with pytest.raises(DatabaseUnavailableError):
        execute(database, "INSERT INTO noted VALUES (1, zeroblob(100000))")
    assert noted(database) == []
    limit[0] = 1_000_000
    execute(database, "INSERT INTO noted VALUES (2, zeroblob(100000))")
    assert noted(database) == [2]
    database.close()


def test_a_locked_file_is_an_outage_as_long_as_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that waits in vain for another program says so; readers go on."""
    monkeypatch.setattr(engine, "_SQLITE_BUSY_SECONDS", 0.05)
    database = sqlite_at(tmp_path / "sma.db")
    execute(database, "CREATE TABLE noted (number integer)")
    rival = sqlite3.connect(tmp_path / "sma.db", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailableError):
        note(database, 1)
    assert noted(database) == []
    rival.execute("ROLLBACK")
    note(database, 2)
    assert noted(database) == [2]
    rival.close()
    database.close()


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    """A short transaction of another program costs time, not an error."""
    database = sqlite_at(tmp_path / "sma.db")
    execute(database, "CREATE TABLE noted (number integer)")
    rival = sqlite3.connect(tmp_path / "sma.db", isolation_level=None, check_same_thread=False)
    rival.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: rival.execute("COMMIT")).start()
    note(database, 1)
    assert noted(database) == [1]
    rival.close()
    database.close()


def test_a_file_in_no_folder_is_an_outage(tmp_path: Path) -> None:
    """A path that leads nowhere does not end in a traceback of the driver."""
    database = sqlite_at(tmp_path / "absent" / "sma.db")
    with pytest.raises(DatabaseUnavailableError):
        database.ping()
    database.close()


def test_a_file_that_is_no_database_is_an_error_of_ours(tmp_path: Path) -> None:
    """A damaged file is told in a sentence, like every other trouble with the database."""
    (tmp_path / "sma.db").write_bytes(b"this was never a database, whatever its name says" * 100)
    database = sqlite_at(tmp_path / "sma.db")
    with pytest.raises(BirthmarkError):
        database.ping()
    database.close()


# --- the URLs of PostgreSQL


def test_every_scheme_leads_to_postgresql(postgres_url: str) -> None:
    """Platforms hand out `postgres://`, SQLAlchemy's users `postgresql+psycopg://`."""
    rest = postgres_url.partition("://")[2]
    for scheme in ("postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"):
        database = open_database(f"{scheme}://{rest}")
        database.ping()
        assert database.dialect_name == "postgresql"
        database.close()


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=prefer",
        "sslmode=disable&connect_timeout=1",
        "application_name=mine",
        "target_session_attrs=read-write",
        "options=-c%20statement_timeout%3D5000",
        "sslmode=prefer&channel_binding=prefer",
        "keepalives_idle=10&keepalives=1",
    ],
)
def test_the_parameters_of_libpq_are_passed_on(postgres_url: str, query: str) -> None:
    """What follows the question mark is libpq's to read."""
    database = open_database(f"{postgres_url}?{query}")
    database.ping()
    name = "mine" if "mine" in query else "birthmark-sma"
    assert rows_of(database, "SELECT current_setting('application_name')") == [(name,)]
    database.close()


def test_a_dead_host_among_several_is_passed_over(postgres_url: str) -> None:
    """A cluster is given as several hosts, the first of which may be down."""
    parts = urlsplit(postgres_url)
    user, _, host = parts.netloc.rpartition("@")
    database = open_database(f"postgresql://{user}@127.0.0.1:1,{host}{parts.path}")
    database.ping()
    with database.write() as transaction:
        transaction.execute(text("CREATE TABLE noted (number integer)"))
    assert noted(database) == []
    database.close()


def test_odd_characters_in_the_parts_of_a_url(postgres_admin_url: str) -> None:
    """Percent-encoding is libpq's, for names and passwords alike."""
    name, password = "odd @:/?#%& name", "p@ss:w/rd?#%&+ Ü"
    url = create_database(postgres_admin_url, name)
    admin = open_database(url)
    try:
        quoted = password.replace("'", "''")
        execute(admin, f"CREATE ROLE odd_role LOGIN PASSWORD '{quoted}'".replace(":", "\\:"))
        host = urlsplit(postgres_admin_url).netloc.rpartition("@")[2]
        rest = f"odd_role:{quote(password, safe='')}@{host}/{quote(name, safe='')}"
        database = open_database(f"postgresql://{rest}")
        assert rows_of(database, "SELECT current_user, current_database()") == [("odd_role", name)]
        database.close()
    finally:
        execute(admin, "DROP ROLE odd_role")
        admin.close()
        drop_database(postgres_admin_url, name)


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"mysql://sma:{SECRET}@host/sma",
        f"postgresql:sma:{SECRET}@host",
        f"http://{SECRET}",
        f"postgresqlx://sma:{SECRET}@host/sma",
        f"sqlite:{SECRET}",
        f"postgresql://sma:{SECRET}%zz@host/sma",
        f"postgresql://sma:%00{SECRET}@host/sma",
        f"postgresql://sma:x@[::1/{SECRET}",
        f"postgresql://sma:x@host/sma?{SECRET}",
        f"postgresql://sma:x@host/sma?{SECRET}=1",
        f"postgresql://sma:x@host/sma?sslmode={SECRET}&sslmode",
        f"postgresql://sma:x@host/sma?password={SECRET}&nonsense=1",
    ],
)
def test_a_url_that_cannot_be_is_refused_without_showing_it(url: str) -> None:
    """Threat 28: a URL has the password in it, so no message quotes any part of it."""
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        open_database(url)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://sma:{SECRET}@127.0.0.1:1/sma",
        f"postgresql://sma:{SECRET}@host.invalid/sma",
        f"postgresql://sma:pass/{SECRET}@127.0.0.1:1/sma",
        f"postgresql:///sma?host=/nowhere&password={SECRET}",
    ],
)
def test_a_server_that_is_not_there_is_an_outage(url: str) -> None:
    """Threat 28: not even the whole chain of causes tells the password."""
    database = open_database(url)
    with pytest.raises(DatabaseUnavailableError) as raised:
        database.ping()
    assert str(raised.value) == "The database does not answer"
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    database.close()


def test_a_wrong_password_is_an_outage(postgres_url: str) -> None:
    """Threat 28: what PostgreSQL says about it stays between it and the log, without a secret."""
    user = urlsplit(postgres_url).username
    host = urlsplit(postgres_url).netloc.rpartition("@")[2]
    database = open_database(f"postgresql://{user}:{SECRET}@{host}/postgres")
    with pytest.raises(DatabaseUnavailableError) as raised:
        database.ping()
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    database.close()


# --- PostgreSQL goes and comes back


def test_postgresql_may_go_and_come_back(own_postgres: Postgres) -> None:
    """Threat 19: while it is away, every use says so; once it is back, nothing is restarted."""
    database = open_database(own_postgres.url)
    execute(database, "CREATE TABLE noted (number integer PRIMARY KEY)")
    note(database, 1)
    with pytest.raises(DatabaseUnavailableError):
        in_one_block(database, "INSERT INTO noted VALUES (2)", own_postgres.kill)
    for use in (database.ping, lambda: noted(database), lambda: note(database, 3)):
        with pytest.raises(DatabaseUnavailableError):
            use()
    own_postgres.restart()
    note(database, 4)
    assert noted(database) == [1, 4]
    own_postgres.restart()
    assert noted(database) == [1, 4]
    database.close()


def test_a_connection_that_is_cut_is_an_outage(postgres_url: str) -> None:
    """An administrator who ends our connection costs that transaction alone."""
    database = open_database(postgres_url)
    execute(database, "CREATE TABLE noted (number integer)")

    def cut() -> None:
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

    insert = "INSERT INTO noted VALUES (1)"
    with pytest.raises(DatabaseUnavailableError):
        in_one_block(database, insert, cut, insert)
    assert noted(database) == []
    database.close()


def test_a_read_only_server_is_an_outage(postgres_url: str) -> None:
    """A server that became a standby cannot record, so it counts as away."""
    database = open_database(f"{postgres_url}?options=-c%20default_transaction_read_only%3Don")
    database.ping()
    with pytest.raises(DatabaseUnavailableError):
        execute(database, "CREATE TABLE noted (number integer)")
    database.close()


def test_too_many_at_once_are_told_so(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds every connection taken hears it within the time of a connection attempt.

    That time is short here for the wait alone. A server with much to do may take longer than a
    second to open a connection, so opening has a minute.
    """
    monkeypatch.setattr(engine, "_POOL_SECONDS", 1)
    database = open_database(f"{postgres_url}?connect_timeout=60")
    with contextlib.ExitStack() as taken:
        for _ in range(15):
            taken.enter_context(database.read())
        with pytest.raises(DatabaseUnavailableError) as caught:
            database.ping()
        assert isinstance(caught.value.__cause__, exc.TimeoutError), "the pool did not say so"
    database.ping()
    database.close()
