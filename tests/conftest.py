"""What every test may ask for: databases on a real PostgreSQL, and a clean environment.

One PostgreSQL serves the whole run. Under pytest-xdist the controller starts it and tells the
workers where it is; otherwise it starts when a test first asks for it. Databases and servers are
imported by the fixtures that start them, so that a pure test file runs in a second.
"""

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from tests.support import derivation_cost

if TYPE_CHECKING:
    from tests.support.databases.postgres import Postgres
    from tests.support.databases.redis import Redis
    from tests.support.programs.running import Running, Servers

_ADMIN_URL = "postgres_admin_url"
_CHOSEN_BINARIES = pytest.StashKey[str | None]()
_BINARIES_VARIABLE = "SMA_TEST_PG_BINDIR"
_SHARED_SERVER = pytest.StashKey["Postgres"]()
_SETTINGS_OUTSIDE_SMA = frozenset({"DATABASE_URL", "CA_PASSWORD", "PORT"})

settings.register_profile(
    "sma", deadline=None, derandomize="CI" in os.environ, print_blob=True, max_examples=100
)
settings.load_profile("sma")


def pytest_configure(config: pytest.Config) -> None:
    """Read the tests' own variable before `clean_environment` takes it away.

    And let the programs that tests start hear Ctrl-C, which shells hide from what runs behind them.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_CHOSEN_BINARIES] = os.environ.get(_BINARIES_VARIABLE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one more test than there are cores: many of them wait for something most of the time."""
    return (os.cpu_count() or 1) + 1


class _Worker(Protocol):
    """What this file uses of pytest-xdist's WorkerController, which has no type hints."""

    config: pytest.Config
    workerinput: dict[str, Any]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: _Worker) -> None:
    """Tell a worker of pytest-xdist where the run's PostgreSQL is, and start it for the first."""
    from tests.support.databases.postgres import PostgresStartError, PostgresUnavailableError

    try:
        node.workerinput[_ADMIN_URL] = _shared_server(node.config).url
    except (PostgresStartError, PostgresUnavailableError):
        # Pure tests need none. In the others the fixture tries again, and its error says why not.
        return


def _shared_server(config: pytest.Config) -> "Postgres":
    from tests.support.databases.postgres import Postgres, find_binaries

    if _SHARED_SERVER not in config.stash:
        server = Postgres(binaries=find_binaries(config.stash[_CHOSEN_BINARIES]))
        config.add_cleanup(server.close)
        config.stash[_SHARED_SERVER] = server
    return config.stash[_SHARED_SERVER]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every setting of the developer's shell: DATABASE_URL, CA_PASSWORD, PORT and SMA_*."""
    for name in list(os.environ):
        if name in _SETTINGS_OUTSIDE_SMA or name.startswith("SMA_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _full_costs() -> dict[derivation_cost.Cost, int]:
    """Lower the cost of key derivations for all tests of this process; return the full costs.

    A module that no test of the process has imported by now derives no key in it.
    """
    known = derivation_cost.OF_AUTHORITIES + derivation_cost.OF_CAMERAS
    costs = tuple(cost for cost in known if cost.module in sys.modules)
    full = {cost: cost.read() for cost in costs}
    derivation_cost.lower(costs)
    return full


@pytest.fixture
def full_derivation_cost(_full_costs: dict[derivation_cost.Cost, int]) -> Iterator[None]:
    """Let key derivations cost in this test's process what they cost an operator."""
    for cost, full in _full_costs.items():
        cost.write(full)
    yield
    derivation_cost.lower(tuple(_full_costs))


@pytest.fixture(scope="session")
def postgres_binaries(pytestconfig: pytest.Config) -> Path:
    """The folder of PostgreSQL's programs, for a test that starts a server by itself."""
    from tests.support.databases.postgres import find_binaries

    return find_binaries(pytestconfig.stash[_CHOSEN_BINARIES])


@pytest.fixture(scope="session")
def postgres_admin_url(pytestconfig: pytest.Config) -> str:
    """The superuser's URL of the PostgreSQL that the whole run shares; never stop that server."""
    given: str | None = getattr(pytestconfig, "workerinput", {}).get(_ADMIN_URL)
    return given or _shared_server(pytestconfig).url


@pytest.fixture
def postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that no other test sees; dropped at the end."""
    from tests.support.databases.postgres import OWN_DATABASE, create_database, drop_database

    name = f"{OWN_DATABASE}{secrets.token_hex(8)}"
    yield create_database(postgres_admin_url, name)
    drop_database(postgres_admin_url, name)


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> "Iterator[Postgres]":
    """A PostgreSQL of this test's own, to stop, kill and start again; it loses no committed row."""
    from tests.support.databases.postgres import DURABLE_OPTIONS, Postgres

    with Postgres(DURABLE_OPTIONS, binaries=postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> "Iterator[Redis]":
    """A Redis that the tests of this process share: never stop it, and use keys of your own."""
    from tests.support.databases.redis import Redis

    with Redis() as server:
        yield server


@pytest.fixture
def own_redis() -> "Iterator[Redis]":
    """A Redis of this test's own, to kill and start again."""
    from tests.support.databases.redis import Redis

    with Redis() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of this test's own: the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sma.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> "Iterator[Servers]":
    """The servers that the tests of this process share; none stops them or counts what they did."""
    from tests.support.programs.running import Servers

    shared = Servers(tmp_path_factory.mktemp("servers"), postgres_admin_url)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, servers: "Servers") -> "Running":
    """A running server that tests share: the test runs once on each kind of database."""
    return servers.get(request.param)
