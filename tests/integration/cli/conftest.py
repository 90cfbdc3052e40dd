"""Authorities for the commands: founded once, copied for each test that changes something."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.programs.commands import expect_no_server, sma
from tests.support.programs.server import server_environ


@dataclass(frozen=True)
class Place:
    """An authority on SQLite, and the environment in which `sma` finds it."""

    data_dir: Path

    def sma(
        self,
        *arguments: str,
        stdin: str | None = None,
        cwd: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> "CompletedProcess[str]":
        """Run a command on it, with further environment variables."""
        return sma(
            *arguments,
            environ=server_environ(self.data_dir) | dict(settings or {}),
            stdin=stdin,
            cwd=cwd or self.data_dir.parent,
            before=(expect_no_server,),
        )


@pytest.fixture(scope="session")
def founded_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A founded authority that no test may change."""
    place = Place(tmp_path_factory.mktemp("founded") / "data")
    new_authority = place.sma("init", "--json")
    assert new_authority.returncode == 0, new_authority.stderr
    return place


@pytest.fixture
def place(founded_place: Place, tmp_path: Path) -> Place:
    """A founded authority of this test's own."""
    shutil.copytree(founded_place.data_dir, tmp_path / "data")
    return Place(tmp_path / "data")


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    """Where no authority is yet."""
    return Place(tmp_path / "data")


def assert_refused(result: "CompletedProcess[str]", code: int, *words: str) -> None:
    """The command ended with this code and one line on stderr, a sentence with these words."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("sma: ")
    assert lines[0].endswith((".", "?"))
    for word in words:
        assert word in lines[0]
