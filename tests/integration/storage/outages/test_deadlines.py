"""A PostgreSQL that hangs: every call ends in time, and service is back when the fault is over."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from birthmark_sma.errors import AbandonedWorkError, DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage import interruption
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.interruption import Interruption
from birthmark_sma.storage.outages import deadlines
from birthmark_sma.storage.postgresql_driver import execute_blocking
from tests.support.authorities import execute, rows_of
from tests.support.databases.frozen_proxy import FrozenProxy, through_all
from tests.support.programs.running import wait_until

LATE = 5.0  # seconds by which a busy machine may be late
ROOMY = 10.0  # seconds for a call: the server ends it one second earlier, or two for a lock


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FrozenProxy]:
    """Stand between the database of this test and its clients."""
    with FrozenProxy(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def database(proxy: FrozenProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Open that database, with a table in it and short deadlines."""
    for name in ("ROUND_TRIP_SECONDS", "COMMIT_SECONDS"):
        monkeypatch.setattr(deadlines, name, 1.0)
    database = open_database(proxy.url)
    execute(database, "CREATE TABLE noted (number integer)")
    yield database
    proxy.thaw()
    database.close()


def note(database: Database, number: int, seconds: float = 1.0) -> None:
    """Note a number, as the two writers note what they do."""
    database.transact(
        lambda transaction: transaction.execute(
            text("INSERT INTO noted VALUES (:number)"), {"number": number}
        ),
        seconds,
    )


def noted(database: Database) -> list[int]:
    """Return the numbers that were noted."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call took."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def hang(database: Database, proxy: FrozenProxy, moment: str) -> None:
    """Freeze the server in the middle of a transaction."""
    if moment == "begin":
        proxy.freeze()
    with database.write(1.0) as transaction:
        execute_blocking(transaction, "INSERT INTO noted VALUES (1)", [])
        if moment != "begin":
            proxy.freeze()
        if moment == "blocking call":
            execute_blocking(transaction, "SELECT 1", [])
        if moment == "cursor":
            transaction.execute(text("SELECT 1"))
        if moment == "rollback":
            raise ValueError


@pytest.mark.parametrize("moment", ["begin", "blocking call", "cursor", "commit"])
def test_a_call_without_an_answer_ends(
    database: Database, proxy: FrozenProxy, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says what it was; a commit says that it may have happened. Then service is back."""

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError, match="does not answer") as raised:
            hang(database, proxy, moment)
        assert raised.value.fault is DatabaseFault.AWAY
        assert "frozen" in raised.value.advice
        assert raised.value.may_have_committed is (moment == "commit")

    assert 0.9 < seconds_of(fail) < 1.0 + LATE
    assert [each for each in caplog.messages if "did not answer a call in time" in each]
    proxy.thaw()
    assert seconds_of(lambda: note(database, 2)) < LATE
    assert 2 in noted(database)


def test_commits_without_an_answer_get_more_time(database: Database, proxy: FrozenProxy) -> None:
    """Each leaves a process at a server that waits for its standby: they must not fill it up."""

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError):
            hang(database, proxy, "commit")
        proxy.thaw()

    first, second, third = (seconds_of(fail) for _ in range(3))
    assert first > 0.9
    assert second > 1.9
    assert third > 3.9
    note(database, 1)
    with database.write() as transaction:
        driver: Any = transaction.connection.driver_connection
        assert driver.commit_seconds == deadlines.COMMIT_SECONDS


def test_a_rollback_ends(database: Database, proxy: FrozenProxy) -> None:
    """And the work was not done."""

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError):
            hang(database, proxy, "rollback")

    assert seconds_of(fail) < 1.0 + LATE
    proxy.thaw()
    assert noted(database) == []


def test_a_long_job_does_not_begin_on_a_frozen_server(
    database: Database, proxy: FrozenProxy
) -> None:
    """Its statements may take an hour, but BEGIN has the time of a round trip."""
    proxy.freeze()

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError), database.read(deadlines.LONG_SECONDS):
            pytest.fail("it began")

    assert seconds_of(fail) < 1.0 + LATE


def test_a_connection_attempt_ends(proxy: FrozenProxy) -> None:
    """As libpq says, and not later."""
    proxy.freeze()
    database = open_database(f"{proxy.url}?connect_timeout=2")

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError):
            database.ping()

    assert 1.5 < seconds_of(fail) < 2.0 + LATE
    database.close()


def test_an_interrupted_call_ends_though_nobody_answers_its_cancellation(
    database: Database, proxy: FrozenProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of a request whose caller left is free soon, not after its statement's time."""
    monkeypatch.setattr(interruption, "_CUT_SECONDS", 0.5)
    current = Interruption()
    ended: list[Exception] = []

    def work() -> None:
        interruption.CURRENT.set(current)
        try:
            with database.read(60.0) as connection:
                proxy.freeze()
                connection.execute(text("SELECT 1"))
        except (AbandonedWorkError, DatabaseUnavailableError) as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    current.interrupt()
    thread.join(10.0)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_another_host_takes_over(
    postgres_url: str, proxy: FrozenProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hosts of a URL are nodes of a cluster: the frozen one is passed over."""
    monkeypatch.setattr(deadlines, "ROUND_TRIP_SECONDS", 1.0)
    with FrozenProxy(postgres_url) as second:
        database = open_database(through_all(proxy, second))
        execute(database, "CREATE TABLE noted (number integer)")
        proxy.freeze()
        # Once over the old connection, then over a new one: the caller of this waits.
        assert seconds_of(lambda: note(database, 1)) < 1.0 + 3.0 + LATE
        assert noted(database) == [1]
        database.close()


# --- the server's own timeouts


@pytest.fixture
def direct(postgres_url: str) -> Iterator[Database]:
    """Open the database of this test, without a proxy."""
    database = open_database(postgres_url)
    yield database
    database.close()


def own_process(database: Database) -> int:
    """Return the process of the server for this connection."""
    number: int = rows_of(database, "SELECT pg_backend_pid()")[0][0]
    return number


def test_a_server_that_works_ends_a_statement_itself(direct: Database) -> None:
    """Before the watchdog does, so that the connection stays and no statement is left behind."""
    process = own_process(direct)
    with pytest.raises(DatabaseUnavailableError) as raised, direct.read(ROOMY) as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert raised.value.fault is DatabaseFault.BUSY
    assert own_process(direct) == process


def test_a_lock_that_is_held_is_named(direct: Database) -> None:
    """The operator has to look for who holds it, and not for a slow disk."""
    execute(direct, "CREATE TABLE noted (number integer)")
    with direct.write() as holder:
        holder.execute(text("LOCK TABLE noted"))
        with pytest.raises(DatabaseUnavailableError) as raised:
            note(direct, 1, ROOMY)
    assert raised.value.fault is DatabaseFault.LOCKED
    note(direct, 2)
    assert noted(direct) == [2]


@pytest.mark.parametrize(
    ("seconds", "statement", "lock"),
    [
        (deadlines.QUICK_SECONDS, "5400ms", "4800ms"),
        (deadlines.USUAL_SECONDS, "27s", "24s"),
        (deadlines.LONG_SECONDS, "0", "0"),
    ],
)
def test_the_timeouts_of_the_server(
    direct: Database, seconds: float, statement: str, lock: str
) -> None:
    """They are those of the transaction, and end with it."""
    ask = text("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
    with direct.read(seconds) as connection:
        assert tuple(connection.execute(ask).one()) == (statement, lock)
    driver = direct.engine.raw_connection()  # the same, from the pool
    cursor = driver.cursor()
    cursor.execute("SHOW statement_timeout")
    assert cursor.fetchone() == ("0",)
    driver.close()


def test_an_operator_s_timeouts_stay(postgres_url: str) -> None:
    """Those of the URL are in force for every transaction."""
    database = open_database(f"{postgres_url}?options=-c%20statement_timeout%3D7000")
    assert rows_of(database, "SHOW statement_timeout") == [("7s",)]
    database.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_the_isolation_is_ours(direct: Database, postgres_url: str, level: str) -> None:
    """Whatever the database's default is."""
    name = rows_of(direct, "SELECT current_database()")[0][0]
    execute(direct, f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    database = open_database(postgres_url)
    assert rows_of(database, "SHOW default_transaction_isolation") == [(level,)]
    assert rows_of(database, "SHOW transaction_isolation") == [("read committed",)]
    database.close()


# --- the thread of the watchdog


def watchdogs() -> list[threading.Thread]:
    """Return the threads that watch deadlines."""
    return [each for each in threading.enumerate() if each.name == "deadlines"]


def test_a_process_without_a_connection_has_no_thread(postgres_url: str) -> None:
    """So that it may fork, as `sma provision-batch` does."""
    before = len(watchdogs())
    database = open_database(postgres_url)
    database.ping()
    assert len(watchdogs()) == 1
    database.close()
    wait_until(lambda: len(watchdogs()) == before, LATE)


def test_a_child_of_a_fork_watches_its_own_connections(postgres_url: str) -> None:
    """And cuts none of its parent's."""
    database = open_database(postgres_url)
    database.ping()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = open_database(postgres_url)
            try:
                with own.read() as connection:
                    driver = connection.connection.driver_connection
                    assert driver is not None
                    driver.seconds = 0.5
                    connection.execute(text("SET LOCAL statement_timeout = 0"))
                    connection.execute(text("SELECT pg_sleep(60)"))
            except DatabaseUnavailableError as error:
                status = 0 if "frozen" in error.advice else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    process = own_process(database)
    assert own_process(database) == process
    database.close()
