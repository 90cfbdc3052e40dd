"""Servers that the tests of the API share, and clients that compare answers with the document."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.programs.running import Running, Servers


@pytest.fixture
def running_on_sqlite(servers: Servers) -> Running:
    """A running server, for tests to which the kind of database makes no difference."""
    return servers.get("sqlite")


@pytest.fixture
def client(running: Running) -> Iterator[httpx2.Client]:
    """A client that fails the test where an answer is not in the OpenAPI document."""
    with documented_client(running) as opened:
        yield opened


@pytest.fixture
def sqlite_client(running_on_sqlite: Running) -> Iterator[httpx2.Client]:
    """The same for the server on SQLite."""
    with documented_client(running_on_sqlite) as opened:
        yield opened


_documents: dict[str, dict[str, Any]] = {}


def documented_client(running: Running, address: str = "127.0.0.1") -> httpx2.Client:
    """A client that compares status and content type of every answer with the document."""
    url = running.server.url
    if url not in _documents:
        with running.client("127.77.0.1") as plain:
            _documents[url] = plain.get("/openapi.json").json()
    paths = _documents[url]["paths"]

    def compare(response: httpx2.Response) -> None:
        operation = paths.get(response.request.url.path, {}).get(response.request.method.lower())
        if operation is None:
            return
        documented = operation["responses"].get(str(response.status_code))
        assert documented is not None, f"{response.status_code} is not in the OpenAPI document"
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in documented["content"], f"{media_type} is not in the document"

    return running.client(address, event_hooks={"response": [compare]})
