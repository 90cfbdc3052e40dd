"""Questions to the database in threads: bounded in time and number, and ended when nobody waits."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from sqlalchemy import text

from birthmark_sma.errors import (
    AbandonedWorkError,
    DatabaseUnavailableError,
    PoolFullError,
    ShuttingDownError,
)
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.interruption import CURRENT, Interruption
from birthmark_sma.web.middleware.timeouts import WorkerPool, run_with_timeout

LONG = {
    "postgresql": "SELECT pg_sleep(120)",
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 10000000000)"
    " SELECT count(*) FROM n",
}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database of either kind."""
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """A pool of one thread."""
    pool = WorkerPool(1, "test", most_waiting=3)
    yield pool
    pool.shutdown()


def endless(database: Database, outcomes: list[BaseException]) -> Callable[[], None]:
    """A question that takes minutes, and notes how it ended."""

    def question() -> None:
        try:
            with database.read() as connection:
                connection.execute(text(LONG[database.dialect_name]))
        except BaseException as error:
            outcomes.append(error)
            raise

    return question


def assert_free(pool: WorkerPool, outcomes: list[BaseException]) -> None:
    """The thread of a pool is at hand again, as the question in it failed."""
    began = time.monotonic()
    assert pool.submit(lambda: 7).result(10) == 7
    assert time.monotonic() - began < 5
    assert len(outcomes) == 1


def test_a_question_that_takes_too_long_ends(database: Database, pool: WorkerPool) -> None:
    """Threat 49: the statement ends in the database, and its thread is free at once."""
    outcomes: list[BaseException] = []
    with pytest.raises(DatabaseUnavailableError, match="in time"):
        asyncio.run(run_with_timeout(pool, endless(database, outcomes), 0.5))
    assert_free(pool, outcomes)
    database.ping()


async def test_a_question_that_nobody_waits_for_ends(database: Database, pool: WorkerPool) -> None:
    """Threat 49: so it does where the request was cancelled."""
    outcomes: list[BaseException] = []
    asking = asyncio.create_task(run_with_timeout(pool, endless(database, outcomes), 60))
    await asyncio.sleep(0.5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert_free(pool, outcomes)
    database.ping()


def test_a_question_that_has_not_begun_never_does(pool: WorkerPool) -> None:
    """Threat 49: it waits behind another one, and is taken out."""
    going_on = threading.Event()
    pool.submit(going_on.wait, 30)
    begun: list[int] = []

    with pytest.raises(DatabaseUnavailableError):
        asyncio.run(run_with_timeout(pool, lambda: begun.append(1), 0.1))
    going_on.set()
    pool.submit(lambda: None).result(10)
    assert begun == []


def test_work_between_statements_ends_with_the_next(database: Database) -> None:
    """Threat 49: an interruption that no statement hears is heard by the next one."""
    interruption = Interruption()
    token = CURRENT.set(interruption)
    try:
        with database.read() as connection:
            interruption.interrupt()
            with pytest.raises(AbandonedWorkError):
                connection.execute(text("SELECT 1"))
        with pytest.raises(AbandonedWorkError), database.read():
            pass
    finally:
        CURRENT.reset(token)
    database.ping()


def test_an_interruption_meets_nobody_else(database: Database) -> None:
    """The next one who has the connection is not disturbed."""
    for _ in range(20):
        interruption = Interruption()
        token = CURRENT.set(interruption)
        try:
            with database.read() as connection:
                connection.execute(text("SELECT 1"))
            interruption.interrupt()
        finally:
            CURRENT.reset(token)
        with database.read() as connection:
            assert connection.execute(text("SELECT 7")).scalar_one() == 7


# --- the pool


def test_only_so_much_waits(pool: WorkerPool) -> None:
    """Threat 16: what is too much is refused at once, and not stored up."""
    going_on = threading.Event()
    begun = threading.Event()

    def hold() -> None:
        begun.set()
        going_on.wait(30)

    waiting: list[Future[None]] = [pool.submit(hold)]
    assert begun.wait(10)
    waiting += [pool.submit(lambda: None) for _ in range(3)]
    with pytest.raises(PoolFullError):
        pool.submit(lambda: None)
    going_on.set()
    for each in waiting:
        each.result(10)
    assert pool.submit(lambda: 7).result(10) == 7


def test_an_error_reaches_whoever_asked(pool: WorkerPool) -> None:
    """And the thread goes on."""

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  it says nothing
        pool.submit(fail).result(10)
    assert pool.submit(lambda: 7).result(10) == 7


def test_nothing_is_taken_in_after_the_end(pool: WorkerPool) -> None:
    """What was taken in before is still done."""
    before = pool.submit(lambda: 7)
    pool.shutdown()
    with pytest.raises(ShuttingDownError):
        pool.submit(lambda: 7)
    assert before.result(10) == 7
