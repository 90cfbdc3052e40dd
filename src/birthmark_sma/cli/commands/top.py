"""`sma top`: show the overview of the authority in a terminal, and update it every two seconds.

It only reads the database. `commands/top_rendering.py` draws a frame. The terminal must always be
as before when the command ends.
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from typer import Option

from birthmark_sma.cli.opening import existing_database
from birthmark_sma.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from birthmark_sma.authority.operations.statistics import Overview
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

_EVERY_SECONDS = 2.0  # from one database query to the next
_SILENT_SECONDS = 6.0  # a query without result for longer counts as an unreachable database
_KEY_SECONDS = 0.2  # the longest wait for a key before the screen is updated


def top(
    settings: "Settings",
    once: Annotated[bool, Option("--once", help="Print one frame and exit.")] = False,
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

    watch = _Watch(database)
    watch.start()
    watch.latest()  # an error of the first query must not appear on the alternate screen
    shown = None
    # The alternate screen leaves the terminal as it was. Drawing only changes avoids flicker.
    with (
        _single_keys(),
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while shown is None or not _quits(_KEY_SECONDS):
            seen = (watch.latest(), watch.away, console.size)
            if seen != shown:
                shown = seen
                live.update(frame(seen[0], seen[1], width=console.width), refresh=True)


class _Watch(threading.Thread):
    """Queries the database again and again in a thread of its own.

    So the keyboard works while a query hangs. Only this thread writes the attributes. It sets
    `_overview` before it clears `_error`, so the main thread never sees neither.
    """

    def __init__(self, database: "Database") -> None:
        super().__init__(daemon=True, name="top")  # daemon: a hanging query must not block the exit
        self._database = database
        self._asked_at = time.monotonic()
        self._overview: Overview | None = None
        self._error: BaseException | None = None
        self._asked = threading.Event()

    def run(self) -> None:
        from birthmark_sma.authority.operations.statistics import read_overview

        # After an error that is no outage, a retry does not help. The main thread raises it.
        while self._error is None or isinstance(self._error, DatabaseUnavailableError):
            self._asked_at = time.monotonic()
            try:
                self._overview = read_overview(self._database)
                self._error = None
            except BaseException as error:
                self._error = error
            self._asked.set()
            time.sleep(_EVERY_SECONDS)

    @property
    def away(self) -> str | None:
        """The message for a database that does not respond, or None if it responds."""
        hangs = time.monotonic() - self._asked_at > _SILENT_SECONDS
        if self._overview is None or (self._error is None and not hangs):
            return None
        since = self._overview.glance.stats.until
        return f"The database has not answered since {since:%H:%M:%S} UTC."

    def latest(self) -> "Overview":
        """Return the newest overview. Wait for the first one.

        An unreachable database only sets `away` after the first query. Other errors are raised.
        """
        self._asked.wait()
        error, overview = self._error, self._overview
        if error is not None and not (overview and isinstance(error, DatabaseUnavailableError)):
            raise error
        assert overview is not None  # noqa: S101
        return overview


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
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    typed = os.read(sys.stdin.fileno(), 64)
    return not typed or b"q" in typed.lower()
