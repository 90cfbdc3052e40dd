"""Servers of a test's own, on a fresh database of either kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import Running, start

Start = Callable[..., Running]


@pytest.fixture
def start_server(database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a server, on the same data whenever it is called again; all are stopped at the end."""
    started: list[Running] = []

    def start_one(*arguments: str, **environ: str) -> Running:
        running = start(tmp_path / "data", database_url, *arguments, **environ)
        started.append(running)
        return running

    yield start_one
    for running in started:
        running.server.close()
