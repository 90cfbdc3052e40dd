"""The task that copies the metrics of a process: an error must not end it."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from birthmark_sma.web.api import prometheus


class Steps:
    """Count the calls of each step. Calls of `authority.copy_figures` fail as long as `failing`."""

    def __init__(self) -> None:
        self.calls = {"authority": 0, "traffic": 0, "look": 0}
        self.failing = True
        self.authority: Any = SimpleNamespace(copy_figures=self._copy_authority)
        self.traffic: Any = SimpleNamespace(
            copy_figures=lambda: self._count("traffic"), look=lambda: self._count("look")
        )

    def _count(self, step: str) -> None:
        self.calls[step] += 1

    def _copy_authority(self) -> None:
        self._count("authority")
        if self.failing:
            raise ValueError("no room")


async def test_an_error_ends_neither_the_task_nor_the_other_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once each time that the step begins to fail."""
    monkeypatch.setattr(prometheus, "_COPY_SECONDS", 0.001)
    steps = Steps()

    async def rounds(task: asyncio.Task[None], number: int) -> None:
        until = {step: calls + number for step, calls in steps.calls.items()}
        async with asyncio.timeout(10):
            while any(steps.calls[step] < calls for step, calls in until.items()):
                assert not task.done()
                await asyncio.sleep(0)

    task = asyncio.create_task(prometheus.copy_figures(steps.authority, steps.traffic))
    for steps.failing in (True, False, True):
        await rounds(task, 3)
    task.cancel()
    told = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert ["could not be copied" in each.getMessage() for each in told] == [True, True]
    assert "no room" in caplog.text
