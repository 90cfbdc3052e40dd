"""Sandboxes that the tests share, one for each kind of database."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.programs.running import Running, Servers

PAGES = "https://app.example"
"""Of this origin pages may call the sandboxes."""


@pytest.fixture(scope="session")
def sandboxes(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """The sandboxes of this process, each started when it is first asked for."""
    shared = Servers(
        tmp_path_factory.mktemp("sandboxes"),
        postgres_admin_url,
        "--sandbox",
        SMA_TABLES="10",
        SMA_CORS_ORIGINS=PAGES,
    )
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def each_sandbox(request: pytest.FixtureRequest, sandboxes: Servers) -> Running:
    """A sandbox: the test runs once on each kind of database."""
    return sandboxes.get(request.param)


@pytest.fixture
def sandbox(sandboxes: Servers) -> Running:
    """A sandbox, for tests to which the kind of database makes no difference."""
    return sandboxes.get("sqlite")


@pytest.fixture
def client(sandbox: Running) -> Iterator[httpx2.Client]:
    """A client of it."""
    with sandbox.client() as opened:
        yield opened
