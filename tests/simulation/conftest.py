"""Servers that the tests of simulations share, one for each kind of database."""

from collections.abc import Iterator

import pytest

from tests.support.running import Running, Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str) -> Iterator[Servers]:
    """The servers of this process, each started when it is first asked for."""
    shared = Servers(tmp_path_factory.mktemp("servers"), postgres_admin_url)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, servers: Servers) -> Running:
    """A running server: the test runs once on each kind of database."""
    return servers.get(request.param)
