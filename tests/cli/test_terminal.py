"""What takes long is seen on a terminal, and never in a pipe."""

import pytest

from tests.cli.conftest import Place
from tests.cli.test_top import Screen
from tests.support.server import server_environ

LONG = [
    (["secrets", "check"], "Opening everything"),
    (["doctor"], "Looking"),
    (["backup"], "Copying"),
    (["secrets", "rotate"], "Wrapping anew"),
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
    assert ran.stderr == ""
