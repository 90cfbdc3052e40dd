"""Timeouts of verdicts: an error at one of them must not end the others."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web.middleware import timeouts
from birthmark_sma.web.middleware.timeouts import Deadlines


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
