"""Small authorities, databases without one, and sandboxes, on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import founded, small_settings
from tests.support.programs.running import Running, Servers
from tests.support.schemas import give_schema

PAGES = "https://app.example"
"""Of this origin pages may call the sandboxes."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """The settings of a small authority that nobody has founded yet."""
    return small_settings(tmp_path, database_url)


@pytest.fixture
def authority(settings: Settings) -> Iterator[Authority]:
    """An open authority of this test's own."""
    with founded(settings) as authority:
        yield authority


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """An open database without a schema."""
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database at this program's schema, which holds no authority."""
    give_schema(database_url)
    database = open_database(database_url)
    yield database
    database.close()


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
