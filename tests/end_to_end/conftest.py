"""Servers of a test's own, on a fresh database of either kind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.running import Running, Servers, start

Start = Callable[..., Running]


@pytest.fixture
def start_server(database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start a server, on the same data whenever it is called again; all are stopped at the end."""
    started: list[Running] = []

    def start_one(*arguments: str, program: Sequence[str] = (), **environ: str) -> Running:
        running = start(tmp_path / "data", database_url, *arguments, program=program, **environ)
        started.append(running)
        return running

    yield start_one
    for running in started:
        running.server.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str) -> Iterator[Servers]:
    """Servers for tests that neither stop theirs nor count what all have done."""
    shared = Servers(tmp_path_factory.mktemp("servers"), postgres_admin_url)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, servers: Servers) -> Running:
    """A running server that tests share: the test runs once on each kind of database."""
    return servers.get(request.param)
