"""One writer, many callers: every item is settled once, and answered once, after its commit."""

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, exc, text

from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DatabaseUnavailableError,
    PoolFullError,
    ShuttingDownError,
)
from birthmark_sma.runtime.submission import Submission
from birthmark_sma.storage import group_commit
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.group_commit import GroupCommit
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.outages import writer_commits
from tests.support.authorities import execute, rows_of
from tests.support.databases.postgres import Postgres
from tests.support.http.contexts import Asked

Pool = GroupCommit[int, int]
Work = Callable[[Connection, Sequence[int]], Sequence[int | BirthmarkError]]

POISON = 13_000
REFUSED = 17_000


@pytest.fixture
def notes(database: Database) -> Database:
    """A database with a table for numbers."""
    execute(database, "CREATE TABLE noted (number integer)")
    return database


def noted(database: Database) -> list[int]:
    """Return the numbers that were committed."""
    return [row[0] for row in rows_of(database, "SELECT number FROM noted ORDER BY number")]


class Notary:
    """Notes numbers in the database and answers with their doubles, as told.

    `batches` are those that were tried, whether they were committed or not.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()
        self.failures: list[Exception] = []

    def __call__(
        self, transaction: Connection, items: Sequence[int]
    ) -> Sequence[int | BirthmarkError]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.may_go_on.wait(30)
        transaction.execute(
            text("INSERT INTO noted VALUES (:number)"), [{"number": item} for item in items]
        )
        if self.failures:
            raise self.failures.pop(0)
        if POISON in items:
            raise ZeroDivisionError
        return [ConflictError("refused") if item == REFUSED else item * 2 for item in items]

    @contextmanager
    def holding(self, pool: Pool) -> Iterator["Future[int]"]:
        """Keep the writer busy with an item of its own, so that what comes in gathers."""
        self.may_go_on.clear()
        self.begun.clear()
        plug = pool.submit(0)
        assert self.begun.wait(30)
        try:
            yield plug
        finally:
            self.may_go_on.set()


@contextmanager
def pool_of(
    database: Database, work: Work, *, pool_limit: int = 1_000, batch_limit: int = 100
) -> Iterator[Pool]:
    """A pool that is closed at the end."""
    pool: Pool = GroupCommit(
        database, work, name="writer", pool_limit=pool_limit, batch_limit=batch_limit
    )
    try:
        yield pool
    finally:
        pool.close()


async def answer_of(pool: Pool, item: int) -> int:
    """Submit an item; its errors come from the coroutine."""
    return await pool.submit_async(item)


@contextmanager
def counted_commits(database: Database) -> Iterator[list[Connection]]:
    """Note every commit during the block."""
    commits: list[Connection] = []

    def note(connection: Connection) -> None:
        commits.append(connection)

    event.listen(database.engine, "commit", note)
    try:
        yield commits
    finally:
        event.remove(database.engine, "commit", note)


def outcome_of(future: "Future[int]") -> int | str:
    """Return an answer, or the name of the error in its place."""
    error = future.exception(30)
    return future.result() if error is None else type(error).__name__


# --- items that came together


def test_items_that_came_together_share_a_transaction(notes: Database) -> None:
    """One answer or error each, in their order; an error among them spoils no other."""
    notary = Notary()
    with pool_of(notes, notary, batch_limit=2) as pool:

        async def together() -> Sequence[int | BirthmarkError]:
            return await pool.submit_together([1, REFUSED, 2, 3])

        answers = asyncio.run(together())
    assert [answers[position] for position in (0, 2, 3)] == [2, 4, 6]
    assert isinstance(answers[1], ConflictError)
    assert notary.batches == [[1, REFUSED, 2, 3]]
    assert noted(notes) == sorted([1, REFUSED, 2, 3])


def test_the_pool_counts_items_and_not_parties(notes: Database) -> None:
    """A party of many fills the pool for those behind it."""
    notary = Notary()

    async def fill(pool: Pool) -> list[object]:
        party = pool.submit_together([1, 2, 3])
        with pytest.raises(PoolFullError):
            await pool.submit_async(4)
        notary.may_go_on.set()
        return list(await party)

    with pool_of(notes, notary, pool_limit=3) as pool, notary.holding(pool):
        assert asyncio.run(fill(pool)) == [2, 4, 6]
    assert noted(notes) == [0, 1, 2, 3]


# --- batches and answers


def test_many_items_share_a_commit(notes: Database) -> None:
    """What gathers while the writer works is settled in as few transactions as the limit allows."""
    notary = Notary()
    with pool_of(notes, notary) as pool, counted_commits(notes) as commits:
        with notary.holding(pool) as plug:
            futures = [pool.submit(number) for number in range(1, 251)]
            assert pool.waiting == 250
        assert [future.result(30) for future in [plug, *futures]] == [2 * n for n in range(251)]
        assert [len(batch) for batch in notary.batches] == [1, 100, 100, 50]
        assert len(commits) == 4
        assert pool.waiting == 0
    assert noted(notes) == list(range(251))


def test_items_are_settled_in_the_order_of_arrival(notes: Database) -> None:
    """First come, first served, across batches."""
    notary = Notary()
    with pool_of(notes, notary, batch_limit=7) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in range(100, 50, -1)]
        for future in futures:
            future.result(30)
    assert [item for batch in notary.batches for item in batch] == [0, *range(100, 50, -1)]


def test_an_answer_comes_after_the_commit(notes: Database) -> None:
    """Threat 30: whoever has an answer finds its row from any other connection."""
    with pool_of(notes, Notary()) as pool:
        for number in range(50):
            assert pool.submit(number).result(30) == 2 * number
            assert noted(notes)[-1] == number


def test_no_answer_before_the_commit(notes: Database) -> None:
    """Threat 30: as long as the transaction is open, nobody hears anything."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool) as plug:
            time.sleep(0.05)
            assert not plug.done()
        assert plug.result(30) == 0


def test_an_error_in_an_item_s_place_is_its_caller_s_alone(notes: Database) -> None:
    """It undoes nothing, its own row included, and its neighbours have their answers."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, REFUSED, 2)]
        assert [outcome_of(future) for future in futures] == [2, "ConflictError", 4]
    assert noted(notes) == [0, 1, 2, REFUSED]


def test_a_poisoned_item_does_not_spoil_the_others(notes: Database) -> None:
    """A fault of the program with one item costs that item alone, and is committed nowhere."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, POISON, 2, POISON, REFUSED)]
        assert [outcome_of(future) for future in futures] == [
            2,
            "ZeroDivisionError",
            4,
            "ZeroDivisionError",
            "ConflictError",
        ]
        assert pool.running
        assert pool.submit(3).result(30) == 6
    assert noted(notes) == [0, 1, 2, 3, REFUSED]


def test_a_row_that_the_database_refuses_is_poison_too(notes: Database) -> None:
    """A constraint that is broken by one item is that item's trouble."""
    execute(notes, "CREATE UNIQUE INDEX noted_once ON noted (number)")
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, 1, 2)]
        assert [outcome_of(future) for future in futures] == [2, "IntegrityError", 4]
    assert noted(notes) == [0, 1, 2]


@pytest.mark.parametrize("answers", [1, 3], ids="{} answers to two items".format)
def test_a_wrong_number_of_answers_leaves_nobody_waiting(notes: Database, answers: int) -> None:
    """A mistake in the work is told to the callers; the writer lives on."""
    notary = Notary()

    def miscount(transaction: Connection, items: Sequence[int]) -> Sequence[int | BirthmarkError]:
        done = notary(transaction, items)
        return [1] * answers if len(items) == 2 else done

    with pool_of(notes, miscount) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, 2)]
        for future in futures:
            assert future.exception(2) is not None or future.result(2)
        assert pool.running
        assert pool.submit(3).result(2) == 6


# --- the pool's limit


def test_a_full_pool_turns_away_at_once(notes: Database) -> None:
    """Nothing was done for those who are turned away, and afterwards there is room again."""
    notary = Notary()
    with pool_of(notes, notary, pool_limit=3) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, 2, 3)]
            for _ in range(2):
                with pytest.raises(PoolFullError):
                    pool.submit(4)
            with pytest.raises(PoolFullError):
                asyncio.run(answer_of(pool, 4))
            assert pool.waiting == 3
        assert [future.result(30) for future in futures] == [2, 4, 6]
        assert pool.submit(5).result(30) == 10
    assert noted(notes) == [0, 1, 2, 3, 5]


# --- closing


def test_closing_settles_what_waits(notes: Database) -> None:
    """Threat 31: everybody who was let in gets an answer, everybody else is told."""
    notary = Notary()
    with pool_of(notes, notary, batch_limit=10) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in range(1, 36)]
            closing = threading.Thread(target=pool.close)
            closing.start()
            _wait_until(lambda: not pool.running)
            with pytest.raises(ShuttingDownError):
                pool.submit(99)
            with pytest.raises(ShuttingDownError):
                asyncio.run(answer_of(pool, 99))
        closing.join(30)
        assert [future.result(0) for future in futures] == [2 * n for n in range(1, 36)]
    assert noted(notes) == list(range(36))


def test_closing_twice_does_no_harm(notes: Database) -> None:
    """And an idle pool closes at once."""
    with pool_of(notes, Notary()) as pool:
        assert pool.running
        pool.close()
        pool.close()
        assert not pool.running


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- the database fails


def unavailable() -> exc.OperationalError:
    """Return what the driver raises for a connection that is gone."""
    return exc.OperationalError("", {}, sqlite3.OperationalError("gone"))


def test_a_failure_before_the_commit_is_tried_again(notes: Database) -> None:
    """Nothing can have been committed, so the second try cannot double anything."""
    notary = Notary()
    notary.failures = [unavailable()]
    with pool_of(notes, notary) as pool:
        assert pool.submit(1).result(30) == 2
        assert notary.batches == [[1], [1]]
    assert noted(notes) == [1]


def test_two_failures_are_an_outage(notes: Database) -> None:
    """Threat 19: everybody in the batch hears of the outage, nobody of anything else."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool) as plug:
            notary.failures = [unavailable() for _ in range(4)]
            futures = [pool.submit(number) for number in (1, 2, 3)]
        outcomes = [outcome_of(future) for future in [plug, *futures]]
        assert outcomes == ["DatabaseUnavailableError"] * 4
        assert notary.batches == [[0], [0], [1, 2, 3], [1, 2, 3]]
        errors = {id(future.exception()) for future in futures}
        assert len(errors) == 3, "callers share an exception, and so each other's traceback"
        assert pool.submit(4).result(30) == 8
    assert noted(notes) == [4]


@pytest.fixture
def short_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on asking PostgreSQL whether a transaction was committed."""
    monkeypatch.setattr(writer_commits, "_SECONDS", 0.2)
    monkeypatch.setattr(writer_commits, "_LEAST_SECONDS", 0.2)


@contextmanager
def failing_commits(database: Database) -> Iterator[None]:
    """Fail every commit during the block, also those of lookups."""

    def fail(_: Connection) -> None:
        raise unavailable()

    event.listen(database.engine, "commit", fail)
    try:
        yield
    finally:
        event.remove(database.engine, "commit", fail)


@pytest.mark.usefixtures("short_lookups")
def test_a_commit_that_stays_unknown_is_not_tried_again(notes: Database) -> None:
    """Threat 30: a second try might double it."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with failing_commits(notes), pytest.raises(DatabaseUnavailableError) as raised:
            pool.submit(1).result(30)
        assert raised.value.may_have_committed
        assert notary.batches == [[1]]
        assert pool.submit(2).result(30) == 4
    assert noted(notes) == [2]


def test_a_stale_connection_costs_nobody_anything(own_postgres: Postgres) -> None:
    """PostgreSQL that was restarted, or that ends our connection in the work, is not noticed."""
    database = open_database(own_postgres.url)
    migrate(database)
    execute(database, "CREATE TABLE noted (number integer)")
    cut = [False, False, True]

    def work(transaction: Connection, items: Sequence[int]) -> Sequence[int | BirthmarkError]:
        if cut and cut.pop(0):
            pid = transaction.execute(text("SELECT pg_backend_pid()")).scalar()
            execute(database, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        transaction.execute(text("INSERT INTO noted VALUES (:n)"), [{"n": item} for item in items])
        return [item * 2 for item in items]

    with pool_of(database, work) as pool:
        assert pool.submit(1).result(30) == 2
        own_postgres.restart()
        assert pool.submit(2).result(30) == 4
        assert pool.submit(3).result(30) == 6
        own_postgres.kill()
        assert outcome_of(pool.submit(4)) == "DatabaseUnavailableError"
        own_postgres.restart()
        assert pool.submit(5).result(30) == 10
    assert noted(database) == [1, 2, 3, 5]
    database.close()


# --- callers of every kind


def test_coroutines_and_threads_side_by_side(notes: Database) -> None:
    """Two event loops and two threads use one pool, and each gets its own answers."""
    answers: dict[str, list[int]] = {}
    with pool_of(notes, Notary()) as pool:

        async def settle_all(name: str, numbers: range) -> None:
            answers[name] = await asyncio.gather(*(answer_of(pool, number) for number in numbers))

        def submit_all(name: str, numbers: range) -> None:
            futures = [pool.submit(number) for number in numbers]
            answers[name] = [future.result(30) for future in futures]

        threads = [
            threading.Thread(target=lambda: asyncio.run(settle_all("loop 0", range(100)))),
            threading.Thread(target=lambda: asyncio.run(settle_all("loop 1", range(100, 200)))),
            threading.Thread(target=submit_all, args=["thread 2", range(200, 300)]),
            threading.Thread(target=submit_all, args=["thread 3", range(300, 400)]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for name, numbers in answers.items():
        begin = int(name[-1]) * 100
        assert numbers == [2 * number for number in range(begin, begin + 100)]
    assert len(answers) == 4
    assert noted(notes) == list(range(400))


async def test_errors_reach_coroutines(notes: Database) -> None:
    """Each its own."""
    with pool_of(notes, Notary()) as pool:
        numbers = (1, REFUSED, POISON, 2)
        outcomes = await asyncio.gather(
            *(answer_of(pool, number) for number in numbers), return_exceptions=True
        )
    assert [outcomes[0], outcomes[3]] == [2, 4]
    assert isinstance(outcomes[1], ConflictError)
    assert isinstance(outcomes[2], ZeroDivisionError)


async def test_whoever_gives_up_before_it_begins_is_not_settled(notes: Database) -> None:
    """Threat 49: only those are that somebody waits for when their transaction begins."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            tasks = [asyncio.create_task(answer_of(pool, number)) for number in range(1, 6)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            tasks[3].cancel()
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert pool.running
    assert [outcomes[position] for position in (0, 2, 4)] == [2, 6, 10]
    assert [type(outcomes[position]) for position in (1, 3)] == [asyncio.CancelledError] * 2
    assert noted(notes) == [0, 1, 3, 5]


async def test_whoever_gives_up_before_the_second_try_is_not_settled(notes: Database) -> None:
    """Threat 49: the first try may have taken as long as the caller waits."""
    notary = Notary()
    notary.failures = [unavailable()]
    with pool_of(notes, notary) as pool:
        notary.may_go_on.clear()
        task = asyncio.create_task(answer_of(pool, 1))
        assert await asyncio.to_thread(notary.begun.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        notary.may_go_on.set()
        assert pool.submit(2).result(30) == 4
    assert noted(notes) == [2]


def test_a_loop_that_ended_changes_nothing(notes: Database) -> None:
    """Threat 31: a caller whose whole event loop is gone does not stop the writer."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            loop = asyncio.new_event_loop()
            task = loop.create_task(answer_of(pool, 1))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            future = pool.submit(2)
        assert future.result(30) == 4
        assert pool.running
        del task
    assert noted(notes) == [0, 1, 2]


# --- answers that reach nobody


class Lost:
    """Notes whose answers were lost: in the batch's own transaction, and in later ones."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, int]] = []
        self.failures: list[Exception] = []

    def __call__(self, transaction: Connection, lost: Sequence[tuple[int, int]]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        transaction.execute(
            text("INSERT INTO noted VALUES (:number)"), [{"number": -item} for item, _ in lost]
        )
        self.noted += lost


@contextmanager
def noting_pool(database: Database, notary: Notary, lost: Lost) -> Iterator[Pool]:
    """A pool that notes lost answers, each as the negative of its number."""
    pool: Pool = GroupCommit(
        database, notary, name="writer", pool_limit=100, batch_limit=100, record_lost=lost
    )
    try:
        yield pool
    finally:
        pool.close()


def test_whoever_leaves_during_the_work_is_noted_with_it(notes: Database) -> None:
    """In the same transaction, so that no other process can be faster; others are not noted."""
    notary, lost = Notary(), Lost()
    may_go_on = threading.Event()

    def work(transaction: Connection, items: Sequence[int]) -> Sequence[int | BirthmarkError]:
        answers = notary(transaction, items)
        assert may_go_on.wait(30)
        return answers

    async def scenario(pool: Pool) -> list[Any]:
        party = pool.submit_together([1, REFUSED, 2])
        assert await asyncio.to_thread(notary.begun.wait, 30)
        party.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        return [await pool.submit_async(3)]

    with counted_commits(notes) as commits:
        pool: Pool = GroupCommit(
            notes, work, name="writer", pool_limit=100, batch_limit=100, record_lost=lost
        )
        assert asyncio.run(scenario(pool)) == [6]
        pool.close()
        assert len(commits) == 2
    assert lost.noted == [(1, 2), (2, 4)]
    assert noted(notes) == sorted([1, 2, REFUSED, -1, -2, 3])


async def test_an_answer_that_nobody_takes_is_noted_afterwards(notes: Database) -> None:
    """The caller leaves during the commit, before its answer, or while it is sent."""
    notary, lost = Notary(), Lost()
    left: list[asyncio.Future[int]] = []

    def leave(_: Connection) -> None:
        while left:
            future = left.pop()
            future.get_loop().call_soon_threadsafe(future.cancel)
            _wait_until(future.done)

    event.listen(notes.engine, "commit", leave)
    with noting_pool(notes, notary, lost) as pool:
        origin = Asked()
        left.append(pool.submit_async(1))
        await asyncio.wait([*left])
        pool.submit_async(2, origin)
        await asyncio.sleep(0)
        waiting = origin.awaited_answer
        assert isinstance(waiting, Submission)
        while not waiting.future.done():
            await asyncio.sleep(0.001)
        waiting.leave()
        waiting.leave()
        _wait_until(lambda: len(lost.noted) == 2)
    event.remove(notes.engine, "commit", leave)
    assert lost.noted == [(1, 2), (2, 4)]
    assert noted(notes) == [-2, -1, 1, 2]


@pytest.mark.usefixtures("short_lookups")
def test_a_commit_that_may_have_happened_has_lost_its_answers(notes: Database) -> None:
    """They are noted once the database takes it, before anything else is settled."""
    notary, lost = Notary(), Lost()
    lost.failures = [unavailable()]
    with noting_pool(notes, notary, lost) as pool:
        with failing_commits(notes), pytest.raises(DatabaseUnavailableError):
            pool.submit(1).result(30)
        _wait_until(lambda: noted(notes) == [-1])
    assert lost.noted[-1] == (1, 2)


async def test_of_too_many_lost_answers_the_oldest_go_and_the_log_says_how_many(
    notes: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if newer ones arrive while the database refuses the older ones."""
    monkeypatch.setattr(group_commit, "_MOST_LOST", 3)
    monkeypatch.setattr(group_commit, "_LOST_AGAIN_SECONDS", 0.1)
    recorded: list[tuple[int, int]] = []
    begun, may_go_on = threading.Event(), threading.Event()

    def refuse_once(_: Connection, lost: Sequence[tuple[int, int]]) -> None:
        if not begun.is_set():
            begun.set()
            assert may_go_on.wait(30)
            raise unavailable()
        recorded.extend(lost)

    pool: Pool = GroupCommit(
        notes, Notary(), name="writer", pool_limit=100, batch_limit=100, record_lost=refuse_once
    )
    older, newer = Asked(), Asked()
    await asyncio.gather(
        pool.submit_together([1, 2, 3], older), pool.submit_together([4, 5], newer)
    )
    older.leave()
    assert await asyncio.to_thread(begun.wait, 30)
    newer.leave()
    may_go_on.set()
    _wait_until(lambda: bool(recorded))
    pool.close()
    assert recorded == [(3, 6), (4, 8), (5, 10)]
    assert [message for message in caplog.messages if "dropped" in message] == [
        "writer: 2 lost answers were dropped and are in no record: the database was away for too"
        " long"
    ]


@pytest.mark.usefixtures("short_lookups")
def test_closing_says_how_many_lost_answers_it_drops(
    notes: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause after a failed attempt is not waited for."""
    monkeypatch.setattr(group_commit, "_LOST_AGAIN_SECONDS", 60.0)
    lost = Lost()
    lost.failures = [unavailable()]

    def fail(_: Connection) -> None:
        raise unavailable()

    event.listen(notes.engine, "commit", fail)
    with noting_pool(notes, Notary(), lost) as pool, pytest.raises(DatabaseUnavailableError):
        pool.submit(1).result(30)
    event.remove(notes.engine, "commit", fail)
    assert lost.noted == []
    assert [message for message in caplog.messages if "dropped" in message] == [
        "writer: 1 lost answers were dropped and are in no record: the database was away for too"
        " long"
    ]


def test_a_thread_that_gives_up_changes_nothing(notes: Database) -> None:
    """What a thread handed in cannot be taken back: it is settled and answered all the same."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            futures = [pool.submit(number) for number in (1, 2, 3)]
            assert not futures[1].cancel()
        assert [future.result(30) for future in futures] == [2, 4, 6]
    assert noted(notes) == [0, 1, 2, 3]


def test_a_thread_that_gives_up_at_the_last_moment(
    notes: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled between the writer's look at it and its answer: the writer lives on."""
    notary = Notary()
    with pool_of(notes, notary) as pool:
        with notary.holding(pool):
            first, second = pool.submit(1), pool.submit(2)

            def look_and_cancel() -> bool:
                done = Future.done(first)
                first.cancel()
                return done

            monkeypatch.setattr(first, "done", look_and_cancel)
        assert second.result(2) == 4
        assert pool.submit(3).result(2) == 6
        assert pool.running


# --- none lost, none doubled


def test_under_stress(notes: Database) -> None:
    """Six threads, small batches, refusals and poison: one answer each, the right one."""
    answers: Counter[tuple[int, int | str]] = Counter()
    lock = threading.Lock()

    def submit_all(pool: Pool, first: int) -> None:
        numbers = [*range(first, first + 100), REFUSED, POISON]
        futures = []
        for number in numbers:
            while True:
                try:
                    futures.append(pool.submit(number))
                    break
                except PoolFullError:
                    time.sleep(0.001)
        for number, future in zip(numbers, futures, strict=True):
            outcome = outcome_of(future)
            with lock:
                answers[number, outcome] += 1

    with pool_of(notes, Notary(), pool_limit=50, batch_limit=9) as pool:
        threads = [
            threading.Thread(target=submit_all, args=[pool, first]) for first in range(0, 600, 100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answers == Counter(
        {(number, 2 * number): 1 for number in range(600)}
        | {(REFUSED, "ConflictError"): 6, (POISON, "ZeroDivisionError"): 6}
    )
    assert noted(notes) == [*range(600), *[REFUSED] * 6]


@given(
    items=st.lists(st.sampled_from([1, 2, 3, POISON, REFUSED]), max_size=12),
    failures=st.integers(0, 3),
    batch_limit=st.integers(1, 5),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_agrees_with_the_database(
    notes: Database, items: list[int], failures: int, batch_limit: int
) -> None:
    """Whatever fails, a number is in the database exactly as often as its caller was not failed."""
    execute(notes, "DELETE FROM noted")
    notary = Notary()
    with pool_of(notes, notary, batch_limit=batch_limit) as pool:
        with notary.holding(pool) as plug:
            notary.failures = [unavailable() for _ in range(failures)]
            futures = [pool.submit(item) for item in items]
        outcomes = [outcome_of(future) for future in [plug, *futures]]
    durable = [
        item
        for item, outcome in zip([0, *items], outcomes, strict=True)
        if outcome not in {"DatabaseUnavailableError", "ZeroDivisionError"}
    ]
    assert noted(notes) == sorted(durable)
    for item, outcome in zip([0, *items], outcomes, strict=True):
        assert outcome in {2 * item, "DatabaseUnavailableError"} or (item, outcome) in {
            (POISON, "ZeroDivisionError"),
            (REFUSED, "ConflictError"),
        }
