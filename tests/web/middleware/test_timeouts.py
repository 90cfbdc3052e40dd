"""Timeouts of verdicts, where an error must not end the others; queries that requests share."""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from birthmark_sma.errors import DatabaseUnavailableError, PoolFullError
from birthmark_sma.web.middleware import timeouts
from birthmark_sma.web.middleware.timeouts import Deadlines, GatheredQuery


async def watched(test: Callable[[Deadlines], Any]) -> None:
    """Run a test beside the task that watches the deadlines, and check that the task goes on."""
    deadlines = Deadlines()
    task = asyncio.create_task(deadlines.watch())
    await test(deadlines)
    assert not task.done()
    task.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, so that a test takes milliseconds."""
    monkeypatch.setattr(timeouts, "_LOOK_SECONDS", 0.01)


def test_only_overdue_futures_end() -> None:
    async def test(deadlines: Deadlines) -> None:
        loop = asyncio.get_running_loop()
        overdue, finished, early = (loop.create_future() for _ in range(3))
        for future, seconds in ((overdue, 0.0), (finished, 0.0), (early, 60.0)):
            deadlines.add(future, seconds)
        finished.set_result("verdict")
        with pytest.raises(DatabaseUnavailableError, match="in time"):
            await asyncio.wait_for(overdue, 5)
        assert finished.result() == "verdict"
        assert not early.done()

    asyncio.run(watched(test))


def test_an_error_at_one_future_ends_no_other_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """A task is a future that refuses `set_exception`. It is logged once, and then left alone."""

    async def test(deadlines: Deadlines) -> None:
        refusing = asyncio.create_task(asyncio.sleep(60))
        for _ in range(2):
            overdue = asyncio.get_running_loop().create_future()
            deadlines.add(refusing, 0.0)
            deadlines.add(overdue, 0.0)
            with pytest.raises(DatabaseUnavailableError):
                await asyncio.wait_for(overdue, 5)
        refusing.cancel()

    asyncio.run(watched(test))
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR"]
    assert "could not be answered" in caplog.text


class Asked:
    """A question that waits until `goes_on` is set, fails for the key 0, and notes its keys."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.keys: list[set[int]] = []

    def __call__(self, keys: Collection[int]) -> Mapping[int, str]:
        """Return the names of the keys."""
        self.keys.append(set(keys))
        assert self.goes_on.wait(30)
        if 0 in keys:
            raise DatabaseUnavailableError("it is away")
        return {each: str(each) for each in keys}


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Yield threads for queries."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def begun(asked: Asked, queries: int) -> None:
    """Wait until so many queries have begun."""
    while len(asked.keys) < queries:
        await asyncio.sleep(0.001)


async def test_one_query_for_all_that_wait(threads: ThreadPoolExecutor) -> None:
    """One runs; what comes meanwhile shares the next, which begins after all of it came."""
    asked = Asked()
    query = GatheredQuery(threads, asked, 30)
    first = asyncio.create_task(query.read([1]))
    await begun(asked, 1)
    others = [asyncio.create_task(query.read([each])) for each in (1, 2, 3)]
    await asyncio.sleep(0)
    asked.goes_on.set()
    assert (await first)[1] == "1"
    assert [(await other)[each] for each, other in zip((1, 2, 3), others, strict=True)] == [
        "1",
        "2",
        "3",
    ]
    assert asked.keys == [{1}, {1, 2, 3}]
    assert (await query.read([4]))[4] == "4"


async def test_a_query_that_fails(threads: ThreadPoolExecutor) -> None:
    """All that waited for it are told, and the next one is tried."""
    asked = Asked()
    asked.goes_on.set()
    query = GatheredQuery(threads, asked, 30)
    told = await asyncio.gather(query.read([0]), query.read([1]), return_exceptions=True)
    assert [type(each) for each in told] == [DatabaseUnavailableError] * 2
    assert await query.read([1]) == {1: "1"}


async def test_a_request_that_leaves_takes_nobody_along(threads: ThreadPoolExecutor) -> None:
    """Neither those that wait for the same query, nor the next ones."""
    asked = Asked()
    query = GatheredQuery(threads, asked, 30)
    leaving, staying = (asyncio.create_task(query.read([each])) for each in (1, 2))
    await begun(asked, 1)
    leaving.cancel()
    asked.goes_on.set()
    assert (await staying)[2] == "2"
    assert leaving.cancelled()


async def test_only_so_many_keys_wait(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 16: what is too much is refused at once, and disturbs nothing."""
    monkeypatch.setattr(timeouts, "_MOST_KEYS", 3)
    asked = Asked()
    query = GatheredQuery(threads, asked, 30)
    first = asyncio.create_task(query.read([1]))
    await begun(asked, 1)
    waiting = asyncio.create_task(query.read([2, 3, 4]))
    await asyncio.sleep(0)
    with pytest.raises(PoolFullError):
        await query.read([5])
    asked.goes_on.set()
    assert (await first, await waiting) == ({1: "1"}, {2: "2", 3: "3", 4: "4"})
