"""Servers of a test's own, on a fresh database of either kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.programs.running import Running, start

Start = Callable[..., Running]

FEW_TABLES = {"SMA_TABLES": "50"}


@pytest.fixture
def start_server(database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a server, on the same data whenever it is called again; all are stopped at the end.

    Its authority is made with few key tables unless told, as making 2,500 takes longer than all
    else at the start. The servers that tests share have that many.
    """
    started: list[Running] = []

    def start_one(*arguments: str, program: Sequence[str] = (), **environ: str) -> Running:
        settings = environ if started else FEW_TABLES | environ
        running = start(tmp_path / "data", database_url, *arguments, program=program, **settings)
        started.append(running)
        return running

    yield start_one
    for running in started:
        running.server.close()
