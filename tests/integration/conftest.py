"""Fixtures: small authorities, databases without one, and sandboxes, on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import new_authority, small_settings
from tests.support.programs.running import Running, Servers
from tests.support.schemas import give_schema

PAGES = "https://app.example"
"""The origin whose pages may call the sandboxes (CORS)."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Return the settings of a small authority that does not exist yet."""
    return small_settings(tmp_path, database_url)


@pytest.fixture
def authority(settings: Settings) -> Iterator[Authority]:
    """Create an authority for this test and yield it, open."""
    with new_authority(settings) as authority:
        yield authority


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """Yield an open database without a schema."""
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Yield an open database with this program's schema and without an authority."""
    give_schema(database_url)
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def sandboxes(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """Yield the sandboxes of this process. Each starts when a test first needs it."""
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
    """Return a sandbox. The test runs once on each kind of database."""
    return sandboxes.get(request.param)


@pytest.fixture
def sandbox(sandboxes: Servers) -> Running:
    """Return a sandbox on SQLite, for tests that do not depend on the kind of database."""
    return sandboxes.get("sqlite")
