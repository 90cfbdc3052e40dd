"""A small authority, or a database without one, once on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import founded, small_settings
from tests.support.schemas import give_schema


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
