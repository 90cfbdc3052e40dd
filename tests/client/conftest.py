"""What the tests of the client share: each way to ask, and a server for each kind of database."""

import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from birthmark_sma.client import Outcome
from tests.support.asking import CALLS, Ask
from tests.support.running import Running, Servers

_TLS = ssl.create_default_context()


@pytest.fixture(params=CALLS)
def ask(request: pytest.FixtureRequest) -> Ask:
    """Each way to ask in turn.

    A client reads the system's certificates when it is made, which costs more than all else in most
    of these tests. Where a URL is plain HTTP they are not used, so there clients share them.
    """
    call = CALLS[request.param]

    def asked(url: str, **arguments: Any) -> Sequence[Outcome]:
        if url.startswith("http:"):
            arguments.setdefault("tls", _TLS)
        return call(url, **arguments)

    return asked


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
