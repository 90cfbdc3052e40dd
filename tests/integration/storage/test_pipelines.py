"""BEGIN goes with a writer's first statement, and the last one with COMMIT: all stays as it was."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, exc, text

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.outages import deadlines
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.writer_commits import WriterCommits
from birthmark_sma.storage.postgresql.arrays import array_of_bytes
from birthmark_sma.storage.postgresql_driver import NamedStatement
from tests.support.authorities import execute, rows_of
from tests.support.databases.answer_counter import AnswerCounter
from tests.support.schemas import give_schema

_ASK = NamedStatement("SELECT :word::text")
_NOTE = NamedStatement("INSERT INTO noted VALUES (:number::text::integer)")
_FAIL = NamedStatement("SELECT fail(:code::text)")
_LARGE = NamedStatement("SELECT :value::bytea[]")
_TABLES = (
    "CREATE TABLE noted (number integer)",
    "CREATE FUNCTION fail(code text) RETURNS void LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE 'it failed' USING ERRCODE = code; END $$",
)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[AnswerCounter]:
    """Stand between the database of this test and its clients."""
    give_schema(postgres_url)
    with AnswerCounter(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def database(proxy: AnswerCounter) -> Iterator[Database]:
    """Open that database, with all statements of the tests prepared on its one connection."""
    database = open_database(proxy.url)
    for statement in _TABLES:
        execute(database, statement)
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        _ASK.run(transaction, word=b"")
        _LARGE.run(transaction, value=array_of_bytes([b""]))
        _NOTE.run_at_commit(transaction, number=b"0")
        prepare(transaction, _FAIL, code=b"00000")
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        _NOTE.run_at_commit(transaction, number=b"0")  # prepares COMMIT
    for table in ("noted", "writer_commits"):
        execute(database, f"DELETE FROM {table}")
    yield database
    proxy.thaw()
    database.close()


def prepare(transaction: Connection, statement: NamedStatement, **parameters: bytes) -> None:
    """Prepare a statement that fails."""
    savepoint = transaction.begin_nested()
    with pytest.raises((exc.DBAPIError, DatabaseUnavailableError)):
        statement.run(transaction, **parameters)
    savepoint.rollback()


def noted(database: Database) -> list[int]:
    """Return the numbers that were noted."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


def mark() -> CommitMark:
    """Return a mark of another writer each time."""
    mark.number = getattr(mark, "number", 0) + 1  # type: ignore[attr-defined]
    return CommitMark(f"writer {mark.number}", 1)  # type: ignore[attr-defined]


def write(
    database: Database, work: Callable[[Connection], object], seconds: float = QUICK_SECONDS
) -> None:
    """Do some work in a transaction with a commit mark."""
    with database.write(seconds, mark=mark()) as transaction:
        work(transaction)


def test_two_of_five_round_trips_are_saved(database: Database, proxy: AnswerCounter) -> None:
    """Only the statements between the first and the last have one of their own."""
    before = proxy.answers
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        assert proxy.answers == before, "BEGIN was sent alone"
        assert _ASK.run(transaction, word=b"first").get_value(0, 0) == b"first"
        assert proxy.answers == before + 1
        assert _ASK.run(transaction, word=b"second").get_value(0, 0) == b"second"
        _NOTE.run_at_commit(transaction, number=b"1")
        assert proxy.answers == before + 2
    assert proxy.answers == before + 3
    assert noted(database) == [1]


def test_begin_is_never_sent_with_commit(database: Database, proxy: AnswerCounter) -> None:
    """The lookup of an unknown commit relies on the answer to BEGIN."""
    before = proxy.answers
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        _NOTE.run_at_commit(transaction, number=b"1")
    assert proxy.answers == before + 2
    before = proxy.answers
    with WriterCommits(database).write(QUICK_SECONDS):
        pass
    assert proxy.answers == before + 2
    assert rows_of(database, "SELECT count(*) FROM writer_commits") == [(2,)]


@pytest.mark.parametrize("many", [False, True])
def test_other_statements_begin_the_transaction_as_well(database: Database, many: bool) -> None:
    """Those of psycopg's cursors, of one row and of several."""
    insert = text("INSERT INTO noted VALUES (:number)")
    rows = [{"number": 1}, {"number": 2}]
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        transaction.execute(insert, rows if many else rows[0])
        ask = "SELECT sequence FROM writer_commits WHERE writer NOT IN ('') ORDER BY committed_at"
        assert transaction.execute(text(ask)).scalars().all() == [1]
        transaction.rollback()
    assert noted(database) == []


def test_a_statement_for_commit_runs_before_the_next_one(database: Database) -> None:
    """If there is one after all."""
    with WriterCommits(database).write(QUICK_SECONDS) as transaction:
        _NOTE.run_at_commit(transaction, number=b"1")
        assert transaction.execute(text("SELECT number FROM noted")).scalars().all() == [1]
        _NOTE.run_at_commit(transaction, number=b"2")
        _NOTE.run_at_commit(transaction, number=b"3")
        _ASK.run(transaction, word=b"")
        _NOTE.run_at_commit(transaction, number=b"4")
    assert noted(database) == [1, 2, 3, 4]


@pytest.mark.parametrize("statement", [_ASK, None])
def test_work_that_fails_sends_nothing_more(
    database: Database, proxy: AnswerCounter, statement: NamedStatement | None
) -> None:
    """Neither the statement for COMMIT, nor BEGIN if there was none."""
    before = proxy.answers

    def work(transaction: Connection) -> None:
        if statement is not None:
            statement.run(transaction, word=b"")
        _NOTE.run_at_commit(transaction, number=b"1")
        raise ValueError("it failed")

    with pytest.raises(ValueError, match="it failed"):
        write(database, work)
    assert proxy.answers == before + (0 if statement is None else 2)  # with ROLLBACK
    assert noted(database) == []


@pytest.mark.parametrize("with_commit", [True, False])
@pytest.mark.parametrize(
    ("code", "fault", "again"),
    [
        ("53100", DatabaseFault.FULL, False),
        ("40001", DatabaseFault.BUSY, True),
        ("57P01", DatabaseFault.AWAY, False),
    ],
)
def test_a_statement_that_fails(
    database: Database,
    code: str,
    fault: DatabaseFault,
    again: bool,
    with_commit: bool,
) -> None:
    """It is the same error, and the transaction was not committed: no lookup is needed."""

    def work(transaction: Connection) -> None:
        if with_commit:
            _ASK.run(transaction, word=b"")
            _FAIL.run_at_commit(transaction, code=code.encode())
        else:
            _FAIL.run(transaction, code=code.encode())

    with pytest.raises(DatabaseUnavailableError) as raised:
        write(database, work)
    assert raised.value.fault is fault
    assert raised.value.try_again is again
    assert not raised.value.may_have_committed
    with database.write(QUICK_SECONDS, mark=mark()) as transaction:
        _NOTE.run_at_commit(transaction, number=b"1")
    assert noted(database) == [1]


def test_a_value_that_is_refused(database: Database) -> None:
    """A bug of this program: its error is not that of a database that is away."""

    def work(transaction: Connection) -> None:
        _NOTE.run_at_commit(transaction, number=b"one")

    with pytest.raises(exc.DataError):
        write(database, work)
    assert noted(database) == []


def test_the_server_ends_the_connection(database: Database) -> None:
    """In the statement sent with COMMIT: it says why, so COMMIT was not run."""
    end = NamedStatement("SELECT pg_terminate_backend(:pid::text::integer, 5000)")
    with database.write(QUICK_SECONDS, mark=mark()) as transaction:
        end.run(transaction, pid=b"2147483647")

    def work(transaction: Connection) -> None:
        own = _ASK.run(transaction, word=b"")
        assert own.ntuples == 1
        pid = transaction.execute(text("SELECT pg_backend_pid()")).scalar_one()
        end.run_at_commit(transaction, pid=b"%d" % pid)

    with pytest.raises(DatabaseUnavailableError) as raised:
        write(database, work)
    assert "administrator" in raised.value.advice
    assert not raised.value.may_have_committed
    with database.write(QUICK_SECONDS, mark=mark()) as transaction:
        assert _ASK.run(transaction, word=b"again").get_value(0, 0) == b"again"


@pytest.mark.parametrize("code", ["53100", "40001"])
def test_a_commit_that_fails(database: Database, code: str) -> None:
    """After its statement succeeded: whatever COMMIT says is looked up, or tried again."""
    for statement in (
        "CREATE FUNCTION check_noted() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE 'it failed' USING ERRCODE = '{code}'; END $$",
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON noted DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION check_noted()",
    ):
        execute(database, statement)

    def work(transaction: Connection) -> None:
        _ASK.run(transaction, word=b"")
        _NOTE.run_at_commit(transaction, number=b"1")

    with pytest.raises(DatabaseUnavailableError) as raised:
        write(database, work)
    assert raised.value.try_again is (code == "40001")
    assert raised.value.may_have_committed is (code == "53100")
    assert noted(database) == []


@pytest.mark.parametrize("moment", ["begin", "commit"])
def test_a_server_that_is_frozen(
    database: Database, proxy: AnswerCounter, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call without an answer ends in time. If COMMIT was in it, the end is unknown."""
    monkeypatch.setattr(deadlines, "COMMIT_SECONDS", 1.0)
    monkeypatch.setattr(database, "_commit_seconds", 1.0)

    def work(transaction: Connection) -> None:
        if moment == "begin":
            proxy.freeze()
        _ASK.run(transaction, word=b"")
        _NOTE.run_at_commit(transaction, number=b"1")
        proxy.freeze()

    with pytest.raises(DatabaseUnavailableError) as raised:
        write(database, work, 1.0)
    assert "frozen" in raised.value.advice
    assert raised.value.may_have_committed is (moment == "commit")
    proxy.thaw()
    assert noted(database) in ([], [1])


@pytest.mark.parametrize("moment", ["begin", "commit"])
def test_a_pooler_that_knows_no_prepared_statements(database: Database, moment: str) -> None:
    """The transaction is tried again, and from then on no statement is prepared."""
    if moment == "begin":
        execute(database, "DEALLOCATE ALL")

    def work(transaction: Connection) -> None:
        _ASK.run(transaction, word=b"")
        transaction.execute(text("DEALLOCATE ALL"))
        _NOTE.run_at_commit(transaction, number=b"1")

    with pytest.raises(DatabaseUnavailableError) as raised:
        write(database, work)
    assert raised.value.try_again
    assert not raised.value.may_have_committed
    count = "SELECT count(*) FROM pg_prepared_statements"
    before = rows_of(database, count)
    for number in (b"2", b"3"):
        with database.write(QUICK_SECONDS, mark=mark()) as transaction:
            assert _ASK.run(transaction, word=b"unprepared").get_value(0, 0) == b"unprepared"
            _NOTE.run_at_commit(transaction, number=number)
    assert noted(database) == [2, 3]
    assert rows_of(database, count) == before


def test_large_messages(database: Database) -> None:
    """Neither side waits for the other when both have more to send than the network takes."""
    large = array_of_bytes([bytes(1_000_000)] * 20)
    with WriterCommits(database).write(60.0) as transaction:
        answer = _LARGE.run(transaction, value=large).get_value(0, 0)
        assert (answer or b"")[8:] == large[8:]  # without the flag for NULLs
        _LARGE.run_at_commit(transaction, value=large)
        driver: Any = transaction.connection.driver_connection
        assert driver.ending is not None


@pytest.mark.parametrize(
    ("seconds", "statement", "lock"),
    [(QUICK_SECONDS, "5400ms", "4800ms"), (deadlines.LONG_SECONDS, "0", "0")],
)
def test_the_timeouts_of_a_writer(
    database: Database, seconds: float, statement: str, lock: str
) -> None:
    """They and the isolation level are those of the transaction, and end with it."""
    names = "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"
    show = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    with database.write(seconds, mark=mark()) as transaction:
        assert tuple(transaction.execute(show).one()) == (statement, lock, statement)
        level = transaction.execute(text("SHOW transaction_isolation")).scalar_one()
        assert level == deadlines.ISOLATION.lower()
        driver: Any = transaction.connection.driver_connection
    cursor = driver.cursor()
    assert cursor.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",)
    driver.rollback()


def test_a_slow_statement_is_told(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that is sent with COMMIT."""
    sleep = NamedStatement("SELECT pg_sleep(:seconds::text::float8)")
    with database.write(QUICK_SECONDS, mark=mark()) as transaction:
        sleep.run(transaction, seconds=b"0")
    database.warn_when_slow(0.3)
    with caplog.at_level(logging.WARNING), database.write(QUICK_SECONDS, mark=mark()) as writing:
        sleep.run_at_commit(writing, seconds=b"0.4")
    told = [each for each in caplog.messages if "a statement took" in each]
    assert [each.partition(": ")[2] for each in told] == ["SELECT pg_sleep($1::text::float8)"]
