"""What takes long is seen on a terminal, and never in a pipe."""

import re

import pytest

from tests.integration.cli.conftest import Place
from tests.integration.cli.test_top import Screen
from tests.support.programs.server import server_environ

LONG = [
    (["secrets", "check"], "Opening all secrets"),
    (["doctor"], "Checking"),
    (["backup"], "Copying"),
    (["secrets", "rotate"], "Wrapping secrets"),
    (["history", "partitions"], "Counting"),
]


@pytest.mark.parametrize(("command", "words"), LONG, ids=str)
def test_progress_is_for_terminals_alone(place: Place, command: list[str], words: str) -> None:
    second = [str(place.data_dir.parent / "backup")] if command == ["backup"] else []
    screen = Screen(server_environ(place.data_dir), *command, *second)
    try:
        screen.wait_for(words)
        assert screen.end() == 0
    finally:
        screen.close()
    third = [f"{each}-2" for each in second]
    ran = place.sma(*command, *third)
    assert ran.returncode == 0
    assert words not in ran.stdout
    # A rotation says beforehand, in a pipe too, what becomes of earlier backups.
    told = [
        line for line in ran.stderr.splitlines() if "rotat" not in line and "kept in" not in line
    ]
    assert told == []
    assert bool(ran.stderr) is (command == ["secrets", "rotate"])


@pytest.mark.parametrize(
    ("command", "words"),
    [(["doctor"], "No fault was found."), (["top", "--once"], "CA until")],
    ids=str,
)
def test_a_narrow_terminal_without_colours(place: Place, command: list[str], words: str) -> None:
    """What is told fits into 40 columns, and no colour is sent to whoever declines them."""
    environ = server_environ(place.data_dir) | {"NO_COLOR": "1"}
    made = place.sma("provision", "camera-1", "--output-dir", str(place.data_dir.parent / "out"))
    assert made.returncode == 0, made.stderr
    screen = Screen(environ, *command, columns=40)
    try:
        assert screen.end() == 0
        said = screen.said.decode()
    finally:
        screen.close()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", said)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.replace("\r\n", "\n").rpartition("\r")[2])
    assert words in shown
    # A path alone may be longer than a line.
    assert [line for line in shown.splitlines() if len(line) > 40 and "/" not in line] == []
    assert not re.search(r"\S…\s*$", shown, re.MULTILINE), "no figure is cut off"
