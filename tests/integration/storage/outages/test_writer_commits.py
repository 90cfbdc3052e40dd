"""A COMMIT without an answer: the writer finds out what happened, and nothing is done twice."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.outages import deadlines, writer_commits
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.outages.writer_commits import WriterCommits
from birthmark_sma.storage.postgresql_driver import NamedStatement
from tests.support.authorities import execute, rows_of
from tests.support.databases.commit_loser import CommitLoser, Loss
from tests.support.databases.frozen_proxy import FrozenProxy, through_all
from tests.support.programs.running import wait_until
from tests.support.schemas import give_schema

SECONDS = 6.0  # for each statement
INSERT = NamedStatement("INSERT INTO noted VALUES (:number::text::integer)")


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[CommitLoser]:
    """Stand between the database of this test and its clients."""
    give_schema(postgres_url)
    with CommitLoser(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def database(proxy: CommitLoser) -> Iterator[Database]:
    """Open that database, with a table in it."""
    database = open_database(proxy.url)
    execute(database, "CREATE TABLE noted (number integer)")
    yield database
    database.close()


def note(
    commits: WriterCommits,
    number: int,
    *,
    seconds: float = SECONDS,
    failure: BaseException | None = None,
) -> None:
    """Note a number in one transaction, and fail before its end if asked to."""
    with commits.write(seconds) as transaction:
        transaction.execute(text("INSERT INTO noted VALUES (:number)"), {"number": number})
        if failure is not None:
            raise failure


def noted(database: Database) -> list[int]:
    """Return the numbers that were noted."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


def marks(database: Database) -> list[int]:
    """Return the stored sequence of each writer."""
    rows = rows_of(database, "SELECT sequence FROM writer_commits ORDER BY committed_at, sequence")
    return [row[0] for row in rows]


def test_the_answer_is_lost(database: Database, proxy: CommitLoser) -> None:
    """The transaction was committed, and its caller learns that."""
    commits = WriterCommits(database)
    note(commits, 1)
    proxy.lose(Loss.ANSWER)
    note(commits, 2)
    note(commits, 3)
    assert proxy.lost == 1
    assert noted(database) == [1, 2, 3]
    assert marks(database) == [3]


@pytest.mark.parametrize("loss", [Loss.REQUEST, Loss.UNNOTICED])
def test_the_request_is_lost(
    database: Database, proxy: CommitLoser, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction was not committed. The error says so, and a second attempt succeeds.

    A server that does not notice the lost connection ends the idle transaction itself.
    """
    monkeypatch.setattr(writer_commits, "_SECONDS", 60.0)
    commits = WriterCommits(database)
    proxy.lose(loss)
    with pytest.raises(DatabaseUnavailableError) as raised:
        note(commits, 1, seconds=3.0)
    assert raised.value.fault is DatabaseFault.AWAY
    assert not raised.value.may_have_committed
    assert proxy.lost == 1
    assert noted(database) == []
    retry(lambda: note(commits, 2))
    assert noted(database) == [2]


def test_the_first_transaction_of_a_writer(database: Database, proxy: CommitLoser) -> None:
    """It has no earlier mark."""
    proxy.lose(Loss.REQUEST, Loss.ANSWER)
    commits = WriterCommits(database)
    retry(lambda: note(commits, 1))
    assert proxy.lost == 2
    assert noted(database) == [1]


def test_the_lookup_waits_for_the_old_transaction(
    database: Database, proxy: CommitLoser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not say "not committed" of a transaction that can still be committed."""
    monkeypatch.setattr(writer_commits, "_SECONDS", 0.1)
    monkeypatch.setattr(writer_commits, "_LEAST_SECONDS", 0.1)
    commits = WriterCommits(database)
    proxy.lose(Loss.UNNOTICED)
    with pytest.raises(DatabaseUnavailableError) as raised:
        note(commits, 1, seconds=300.0)  # after which the server ends it when it is idle
    assert raised.value.may_have_committed
    # The writer goes on, though the old transaction still has its row lock.
    note(commits, 2)
    assert noted(database) == [2]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_work(database: Database, failure: type[BaseException]) -> None:
    """The number of a transaction that was rolled back is used again: there are no gaps."""
    commits = WriterCommits(database)
    note(commits, 1)
    with pytest.raises(failure):
        note(commits, 2, failure=failure())
    note(commits, 3)
    assert noted(database) == [1, 3]
    assert marks(database) == [2]


@pytest.mark.parametrize("loss", [Loss.REQUEST, Loss.ANSWER])
@pytest.mark.parametrize("prepares", [True, False])
def test_a_statement_that_is_sent_with_commit(
    database: Database, proxy: CommitLoser, loss: Loss, *, prepares: bool
) -> None:
    """It is lost with COMMIT, or done with it: the mark tells which, and it is done once."""
    commits = WriterCommits(database)

    def note_at_commit(number: int) -> None:
        with commits.write(SECONDS) as transaction:
            INSERT.run_at_commit(transaction, number=b"%d" % number)

    if not prepares:  # as behind a connection pooler
        note(commits, 0)
        execute(database, "DEALLOCATE ALL")
        with pytest.raises(DatabaseUnavailableError):
            note(commits, 0)
        for table in ("noted", "writer_commits"):
            execute(database, f"DELETE FROM {table}")
        commits = WriterCommits(database)
    for number in (1, 2):  # the first one prepares the statements
        note_at_commit(number)
    proxy.lose(loss)
    retry(lambda: note_at_commit(3))
    note_at_commit(4)
    assert proxy.lost == 1
    assert noted(database) == [1, 2, 3, 4]
    # After a transaction that failed, its number is used again, under a new name.
    assert sum(marks(database)) == 4


def test_marks_without_prepared_statements(database: Database, proxy: CommitLoser) -> None:
    """As behind a connection pooler that switches the server connection."""
    commits = WriterCommits(database)
    note(commits, 1)
    execute(database, "DEALLOCATE ALL")
    with pytest.raises(DatabaseUnavailableError) as raised:
        note(commits, 2)
    assert raised.value.try_again
    proxy.lose(Loss.ANSWER)
    note(commits, 3)
    assert proxy.lost == 1
    assert noted(database) == [1, 3]
    assert marks(database) == [2]


def test_a_commit_that_arrives_late(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network held it back until the lookup had begun over another way: it is not missed.

    With a timeout of the operator's, the server does not end the idle transaction before that.
    """
    monkeypatch.setattr(writer_commits, "_SECONDS", 120.0)
    monkeypatch.setattr(deadlines, "COMMIT_SECONDS", 1.0)
    give_schema(postgres_url)
    with FrozenProxy(postgres_url) as slow, FrozenProxy(postgres_url) as fast:
        options = "options=-c%20statement_timeout%3D60000"
        database = open_database(f"{through_all(slow, fast)}?{options}")
        execute(database, "CREATE TABLE noted (number integer)")
        thawing = threading.Thread(target=thaw_when_a_lookup_waits, args=(slow, postgres_url))
        commits = WriterCommits(database)
        with commits.write(3.0) as transaction:
            transaction.execute(text("INSERT INTO noted VALUES (1)"))
            slow.freeze()
            thawing.start()
        thawing.join()
        assert noted(database) == [1]
        assert marks(database) == [1]
        database.close()


def thaw_when_a_lookup_waits(proxy: FrozenProxy, url: str) -> None:
    """Thaw a proxy once a statement of its database waits for the lock of a row."""
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND query LIKE '%INTO writer_commits%'"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            wait_until(lambda: connection.execute(waits).fetchone() is not None, 60.0)
        finally:
            proxy.thaw()
