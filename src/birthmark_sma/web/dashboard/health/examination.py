"""Run the doctor for the health page: rarely, bounded, and once for all who look.

The checks are those of `sma doctor`, except that they read less: half a million audit rows, and a
SQLite file only up to 1 GB. They run in a thread of their own over connections of their own, end
after 45 seconds, and change nothing. Each process keeps its own findings.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from birthmark_sma.authority.operations.doctor.findings import Finding, critical
from birthmark_sma.authority.operations.doctor.runner import Extent, examine
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError, DatabaseUnavailableError
from birthmark_sma.web.middleware.timeouts import run_with_timeout

_FRESH_SECONDS = 300.0
"""Findings that are older than this are made anew."""
_SECONDS = 45.0
_PAUSE_SECONDS = 10.0
"""Whoever asks again sooner gets the findings that are there."""
_EXTENT = Extent(audit_rows=500_000, file_bytes=1_000_000_000)


class Examined(NamedTuple):
    """The findings, when they were made, and how long that took in seconds."""

    findings: Sequence[Finding]
    at: datetime
    seconds: float


class Examination:
    """The newest findings of a process, and the run that makes them. Owned by the event loop."""

    def __init__(self, settings: Settings, thread: Executor) -> None:
        self._settings = settings
        self._thread = thread
        self._newest: Examined | None = None
        self._made = 0.0  # of `monotonic`: a clock that is set back must not keep findings fresh
        self._running: asyncio.Task[Examined] | None = None

    def recent(self, seconds: float = _FRESH_SECONDS) -> Examined | None:
        """Return findings of at most this age, or None."""
        return self._newest if monotonic() - self._made < seconds else None

    async def run(self) -> Examined:
        """Examine, or wait for the examination that runs. Never raises an error of a check."""
        if (newest := self.recent(_PAUSE_SECONDS)) is not None:
            return newest
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await asyncio.shield(self._running)  # others wait for it, too

    async def _run(self) -> Examined:
        began = monotonic()
        try:
            found: Sequence[Finding] = await run_with_timeout(self._thread, self._examine, _SECONDS)
        except DatabaseUnavailableError:
            found = [
                critical(
                    f"The examination did not end within {_SECONDS:.0f} seconds",
                    "Type sma doctor where the authority runs",
                    "doctor",
                )
            ]
        except BirthmarkError as error:
            found = [critical(str(error).rstrip("."), "Type sma doctor", "doctor")]
        finally:
            self._running = None
        self._made = monotonic()
        self._newest = Examined(found, datetime.now(UTC), self._made - began)
        return self._newest

    def _examine(self) -> Sequence[Finding]:
        return examine(self._settings, datetime.now(UTC), lambda _done, _all: None, extent=_EXTENT)
