"""Simulate a machine whose clock is wrong while the database's clock is right."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, tzinfo
from types import SimpleNamespace

import pytest

from birthmark_sma.storage import clock

_for_good = ExitStack()


@contextmanager
def machine_clock_ahead(by: timedelta) -> Iterator[None]:
    """Make the wall clock fast by `by` for every module of the product, until the block's end.

    Monotonic clocks stay right, and PostgreSQL has its own clock.
    """

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    wrong = SimpleNamespace(time=lambda: time.time() + by.total_seconds())
    with pytest.MonkeyPatch.context() as patched:
        for name, module in list(sys.modules.items()):
            if name.startswith("birthmark_sma.") and getattr(module, "datetime", None) is datetime:
                patched.setattr(module, "datetime", Ahead)
        patched.setattr(clock, "time", wrong)
        yield


def trust_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SQLite's rows expire at once, as after an hour in which the clock was right."""
    monkeypatch.setattr(clock, "STEADY_SECONDS", 0.0)


def set_machine_clock_ahead(by: timedelta) -> None:
    """Make the wall clock fast by `by` until the end of the process, for forked commands."""
    _for_good.enter_context(machine_clock_ahead(by))
