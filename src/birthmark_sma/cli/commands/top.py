"""`sma top`: show the overview of the authority in a terminal, and update it every two seconds.

It only reads the database. `commands/top_rendering.py` draws a frame. The terminal must always be
as before when the command ends.
"""

import contextlib
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli.opening import existing_database

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from birthmark_sma.authority.operations.statistics import Overview
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

_EVERY_SECONDS = 2.0  # from one database query to the next
_SILENT_SECONDS = 6.0  # a query without result for longer counts as an unreachable database
_KEY_SECONDS = 0.2  # the longest wait for a key before the screen is updated


def top(
    settings: "Settings",
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
) -> None:
    """Show verdicts, devices, repeated tokens, flags and keys, every two seconds.

    The command reads the database, so it shows all servers of an authority. To end it, press q or
    Ctrl-C. If the database is down, it says so and waits. A pipe gets one frame.
    """
    from rich.console import Console

    from birthmark_sma.authority.operations.statistics import read_overview
    from birthmark_sma.cli.commands.top_rendering import frame

    with existing_database(settings) as database:
        console = Console(highlight=False)
        if once or not console.is_terminal:
            console.print(frame(read_overview(database), width=console.width))
            return
        _live(console, database)


def _live(console: "Console", database: "Database") -> None:
    from rich.live import Live

    from birthmark_sma.cli.commands.top_rendering import frame

    def drawn() -> "RenderableType":
        return frame(latest, watch.away, width=console.width)

    watch = _Watch(database)
    watch.start()
    latest = watch.first()
    # The alternate screen leaves the terminal as it was. Drawing only changes avoids flicker.
    with (
        _single_keys(),
        contextlib.suppress(KeyboardInterrupt),
        Live(
            frame(latest, width=console.width), console=console, screen=True, auto_refresh=False
        ) as live,
    ):
        live.refresh()
        shown = (latest, watch.away, console.size)
        while not _quits(_KEY_SECONDS):
            latest = watch.newest(latest)
            if (latest, watch.away, console.size) != shown:
                shown = (latest, watch.away, console.size)
                live.update(drawn(), refresh=True)


class _Watch(threading.Thread):
    """Queries the database again and again in a thread of its own.

    So the keyboard works while a query hangs. The main thread reads the results from a queue. It
    owns `_answers` and `_since`; this thread owns `_asked_at`.
    """

    def __init__(self, database: "Database") -> None:
        super().__init__(daemon=True, name="top")  # daemon: a hanging query must not block the exit
        self._database = database
        self._seen: queue.Queue[Overview | BaseException] = queue.Queue()
        self._asked_at = time.monotonic()
        self._answers = True
        self._since = datetime.now(UTC)

    def run(self) -> None:
        from birthmark_sma.authority.operations.statistics import read_overview
        from birthmark_sma.errors import DatabaseUnavailableError

        while True:
            self._asked_at = time.monotonic()
            try:
                self._seen.put(read_overview(self._database))
            except DatabaseUnavailableError as error:
                self._seen.put(error)
            except BaseException as error:
                # No outage, so a retry does not help. The main thread raises this error; without it
                # `first` would wait for ever.
                self._seen.put(error)
                return
            time.sleep(_EVERY_SECONDS)

    @property
    def away(self) -> str | None:
        """The message for a database that does not respond, or None if it responds."""
        hangs = time.monotonic() - self._asked_at > _SILENT_SECONDS
        if self._answers and not hangs:
            return None
        return f"The database has not answered since {self._since:%H:%M:%S} UTC."

    def first(self) -> "Overview":
        """Wait for the first overview and return it. Raises the error of the first query."""
        seen = self._seen.get()
        if isinstance(seen, BaseException):
            raise seen
        return seen

    def newest(self, known: "Overview") -> "Overview":
        """Return the newest overview, or `known` if there is no newer one.

        An unreachable database only sets `away`. Every other error of the thread is raised.
        """
        from birthmark_sma.errors import DatabaseUnavailableError

        with contextlib.suppress(queue.Empty):
            while True:
                seen = self._seen.get_nowait()
                self._answers = not isinstance(seen, BaseException)
                if isinstance(seen, BaseException):
                    if not isinstance(seen, DatabaseUnavailableError):
                        raise seen
                    continue
                known, self._since = seen, seen.glance.stats.until
        return known


@contextmanager
def _single_keys() -> Iterator[None]:
    """Read single keys at once and without echo, and restore the terminal at the end."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(seconds: float) -> bool:
    """Wait up to `seconds` for a key. Return whether it was q, or the end of the input."""
    import os

    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    typed = os.read(sys.stdin.fileno(), 64)
    return not typed or b"q" in typed.lower()
