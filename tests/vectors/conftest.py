"""Servers that take the tokens of programs in other languages."""

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


@pytest.fixture(scope="module")
def running_once(servers: Servers) -> Running:
    """A running server, for tests to which the kind of database makes no difference."""
    return servers.get("sqlite")
