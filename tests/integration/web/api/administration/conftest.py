"""A server that asks for keys, with a client for each role and some devices."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import schemathesis

from birthmark_sma.storage.engine import Database
from tests.support.access_keys import bearer, start_with_keys
from tests.support.cameras.camera import PROVISION, provision_body
from tests.support.databases.postgres import create_database, drop_database
from tests.support.programs.running import Running, new_serial

API = "/api/v1"


class Administered(NamedTuple):
    """A server, a key of each scope, and its database."""

    running: Running
    keys: dict[str, str]
    database: Database
    schema: Any

    def ask(self, scope: str, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request, and compare its answer with the OpenAPI document."""
        headers = bearer(self.keys[scope]) | options.pop("headers", {})
        with self.running.client() as client:
            return client.request(method, API + path, headers=headers, **options)

    def read(self, path: str, scope: str = "read", **query: Any) -> Any:
        """Return the JSON of a page that must be there."""
        answer = self.ask(scope, "GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def act(self, path: str, role: str = "operate", /, **body: Any) -> Any:
        """Return the JSON of an act that must be done."""
        answer = self.ask(role, "POST", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def provision(self, serial: str | None = None, **fields: Any) -> str:
        """Provision a device, and return its serial."""
        serial = serial or new_serial()
        body = provision_body(serial) | fields
        with self.running.client(headers=bearer(self.keys["provision"])) as client:
            answer = client.post(PROVISION, json=body)
        assert answer.status_code == 200, answer.text
        return serial

    def count_acts(self) -> int:
        """Return the number of acts."""
        return self.running.count("administrative_acts")

    def check_schema(self, path: str, answer: httpx2.Response, method: str = "GET") -> None:
        """Compare the members of an answer with the OpenAPI document."""
        operation = self.schema[API + path][method]
        operation.validate_response(answer)


@pytest.fixture(scope="package", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Administered]:
    """A server on each database."""
    directory: Path = tmp_path_factory.mktemp("administered")
    url, dropped = "sqlite:", None
    if request.param == "postgresql":
        admin_url = request.getfixturevalue("postgres_admin_url")
        dropped = f"administered_{time.time_ns()}"
        url = create_database(admin_url, dropped)
    running, keys = start_with_keys(directory / "data", url, SMA_TABLES="50")
    with running.client(headers=bearer(keys["read"])) as client:
        document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=running.server.url)
    with running.database() as database:
        yield Administered(running, keys, database, schema)
    running.server.close()
    if dropped is not None:
        drop_database(admin_url, dropped)
