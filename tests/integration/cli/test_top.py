"""`sma top`: one frame for a pipe, and a screen that lives, ends and survives."""

import os
import pty
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from birthmark_sma.cli.commands.top_rendering import curve
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import open_database
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.audit_rows import AuditWriter, judged
from tests.support.databases.postgres import Postgres
from tests.support.programs.commands import sma
from tests.support.programs.server import SMA, server_environ

SMALL = {"SMA_TABLES": "3", "SMA_KEYS_PER_TABLE": "5"}
LEAVES = b"\x1b[?1049l"


def note(url: str, *verdicts: tuple[Reason, str]) -> None:
    """Count verdicts of now."""
    database = open_database(url)
    with database.write() as transaction:
        AuditWriter().write(transaction, judged(datetime.now(UTC), list(verdicts)))
    database.close()


class Screen:
    """A command on a terminal of 24 rows."""

    def __init__(self, environ: dict[str, str], *arguments: str, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*SMA, *arguments],
            env=environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.said = b""

    def wait_for(self, words: str | bytes, seconds: float = 60) -> None:
        """Read until something is written that was not before; what was read is then forgotten."""
        wanted = words.encode() if isinstance(words, str) else words
        deadline = time.monotonic() + seconds
        while wanted not in self.said:
            assert time.monotonic() < deadline, self.said[-3_000:]
            self._read()
        self.said = self.said.partition(wanted)[2]

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self, seconds: float = 30) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.2)[0]:
            try:
                self.said += os.read(self._ours, 65_536)
            except OSError:
                time.sleep(0.1)


Show = Callable[..., Screen]


@pytest.fixture
def show() -> Iterator[Show]:
    """Run commands on terminals, which are gone at the end."""
    screens: list[Screen] = []

    def run(environ: dict[str, str], *arguments: str) -> Screen:
        screens.append(Screen(environ, *arguments))
        return screens[-1]

    yield run
    for screen in screens:
        screen.close()


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([0, 0], "▁▁"),
        ([0, 1, 1_000_000], "▁▂█"),
        ([7, 0, 4, 1], "█▁▅▂"),
    ],
)
def test_a_curve(values: list[int], drawn: str) -> None:
    """One of a million is seen as well: it may be the one that matters."""
    assert curve(values) == drawn


def test_a_pipe_gets_one_frame(place: Place) -> None:
    """With what was counted, in lines that 80 columns hold, and without any escapes."""
    serial = "[red]camera[/red]-" + "x" * 40
    url = f"sqlite:///{place.data_dir / 'sma.db'}"
    note(url, *[(Reason.GENUINE, serial)] * 3, (Reason.NOT_OPENED, serial))
    for arguments in ([], ["--once"]):
        shown = place.sma("top", *arguments)
        assert shown.returncode == 0, shown.stderr
        assert "75.00% PASS of 4" in shown.stdout
        assert "1 not_opened" in shown.stdout
        assert "[red]camera[/red]" in shown.stdout
        assert "2,500 of 2,500 tables" in shown.stdout
        assert "\x1b" not in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 80
        assert len(shown.stdout.splitlines()) <= 24


def test_without_a_database(empty: Place) -> None:
    assert_refused(empty.sma("top", "--once"), 4, "sma init")


@pytest.mark.parametrize("by_key", [True, False])
def test_it_lives_until_q_or_ctrl_c(place: Place, show: Show, by_key: bool) -> None:
    """What is validated meanwhile appears; the terminal is given back as it was."""
    screen = show(server_environ(place.data_dir), "top")
    screen.wait_for("no validations")
    note(f"sqlite:///{place.data_dir / 'sma.db'}", (Reason.GENUINE, "camera-1"))
    screen.wait_for("camera-1")
    if by_key:
        screen.type(b"q")
    else:
        screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 0
    assert LEAVES in screen.said
    assert b"Traceback" not in screen.said


def test_a_database_that_goes_away_and_comes_back(
    own_postgres: Postgres, show: Show, tmp_path: Path
) -> None:
    url = own_postgres.create_database("sma")
    environ = server_environ(tmp_path / "data", url)
    assert sma("init", environ=environ | SMALL).returncode == 0
    screen = show(environ, "top")
    screen.wait_for("3 of 3 tables")
    own_postgres.stop()
    screen.wait_for("has not answered since")
    own_postgres.start()
    note(url, (Reason.GENUINE, "camera-after"))
    screen.wait_for("camera-after")
    screen.type(b"q")
    assert screen.end() == 0
