"""What the tests of the storage may ask for: a migrated database, once on each kind."""

from collections.abc import Iterator

import pytest

from birthmark_sma.storage.engine import Database, open_database
from tests.support.schemas import give_schema


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """An open database without a schema."""
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database at this program's schema."""
    give_schema(database_url)
    database = open_database(database_url)
    yield database
    database.close()
