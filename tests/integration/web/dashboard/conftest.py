"""A server that asks for keys, for the pages of the dashboard, and browsers that are signed in."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from birthmark_sma.storage.engine import Database
from tests.support.access_keys import start_with_keys
from tests.support.databases.postgres import create_database, drop_database
from tests.support.programs.running import Running

PAGE = {"Accept": "text/html,application/xhtml+xml"}
SIGN_IN = "/dashboard/sign-in"


class Guarded(NamedTuple):
    """A server that asks for keys, one key of each scope, and its database."""

    running: Running
    keys: dict[str, str]
    database: Database

    @contextmanager
    def browser(
        self, key: str | None = None, address: str = "127.0.0.1"
    ) -> Iterator[httpx2.Client]:
        """A client that asks for pages; signed in, where a key is given."""
        with self.running.client(headers=PAGE) as client:
            if key is not None:
                answer = sign_in(client, key)
                assert answer.status_code == 303, answer.text
            yield client


def sign_in(client: httpx2.Client, key: str, place: str = "/dashboard") -> httpx2.Response:
    """Fill in the form as a person does."""
    page = client.get(SIGN_IN, params={"next": place})
    fields = {"form": form_of(page), "next": place, "key": key}
    return client.post(SIGN_IN, data=fields)


def form_of(page: httpx2.Response) -> str:
    """What the form of a page holds."""
    found = re.search(r'name="form" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found.group(1)


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """The test runs once on each kind of database."""
    directory: Path = tmp_path_factory.mktemp("guarded")
    url, dropped = "sqlite:", None
    if request.param == "postgresql":
        admin_url = request.getfixturevalue("postgres_admin_url")
        dropped = f"guarded_{time.time_ns()}"
        url = create_database(admin_url, dropped)
    running, keys = start_with_keys(directory / "data", url)
    with running.database() as database:
        yield Guarded(running, keys, database)
    running.server.close()
    if dropped is not None:
        drop_database(admin_url, dropped)
