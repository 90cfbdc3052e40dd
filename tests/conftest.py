"""Fixtures for all tests: databases on a real PostgreSQL, Redis, servers, a clean environment.

One PostgreSQL serves the whole run. Under pytest-xdist the controller starts it and passes its URL
to the workers. Otherwise it starts when the first test needs it. Fixtures import databases and
servers when they start them, so that a file of unit tests runs in a second.
"""

import asyncio
import contextlib
import gc
import inspect
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
_ISOLATION_VARIABLE = "BIRTHMARK_TEST_ISOLATION"
"""An isolation level for all transactions of the tests' own processes, such as SERIALIZABLE."""
_SHARED_SERVER = pytest.StashKey["Postgres"]()
_SETTINGS_OUTSIDE_SMA = frozenset({"DATABASE_URL", "CA_PASSWORD", "PORT"})

settings.register_profile(
    "sma", deadline=None, derandomize="CI" in os.environ, print_blob=True, max_examples=100
)
settings.load_profile("sma")


def pytest_configure(config: pytest.Config) -> None:
    """Read the tests' own variable before `clean_environment` removes it.

    Also restore the default handler of SIGINT: a shell sets it to "ignore" for background jobs, and
    the programs that tests start would inherit that and ignore Ctrl-C.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_CHOSEN_BINARIES] = os.environ.get(_BINARIES_VARIABLE)
    if level := os.environ.get(_ISOLATION_VARIABLE):
        from birthmark_sma.storage.outages import deadlines

        deadlines.ISOLATION = level.upper()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector, and keep what is there then out of its work.

    Modules and ten thousand tests stay until the end. To look through them again and again took a
    third of the collection's CPU time in each worker, and later up to half a second each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine on an event loop of its own."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    asyncio.run(test(**given))
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than cores: many tests wait, but together they use all cores."""
    return (os.cpu_count() or 1) + 1


class _Worker(Protocol):
    """The part of pytest-xdist's WorkerController that this file uses. It has no type hints."""

    config: pytest.Config
    workerinput: dict[str, Any]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: _Worker) -> None:
    """Pass the URL of the run's PostgreSQL to a worker. The first call starts the server."""
    from tests.support.databases.postgres import PostgresStartError, PostgresUnavailableError

    try:
        node.workerinput[_ADMIN_URL] = _shared_server(node.config).url
    except (PostgresStartError, PostgresUnavailableError):
        # Unit tests need no PostgreSQL. For other tests the fixture tries again and fails.
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
    """Remove the settings of the developer's shell: DATABASE_URL, CA_PASSWORD, PORT and SMA_*."""
    for name in list(os.environ):
        if name in _SETTINGS_OUTSIDE_SMA or name.startswith("SMA_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _full_costs() -> dict[derivation_cost.Cost, int]:
    """Lower the cost of key derivations for all tests of this process. Return the full costs.

    Modules that are not imported by now are left out, because no test of the process derives a key
    with them.
    """
    known = derivation_cost.OF_AUTHORITIES + derivation_cost.OF_CAMERAS
    costs = tuple(cost for cost in known if cost.module in sys.modules)
    full = {cost: cost.read() for cost in costs}
    derivation_cost.lower(costs)
    return full


@contextlib.contextmanager
def _at(full_costs: dict[derivation_cost.Cost, int]) -> Iterator[None]:
    for cost, full in full_costs.items():
        cost.write(full)
    try:
        yield
    finally:
        derivation_cost.lower(tuple(full_costs))


@pytest.fixture(scope="module")
def full_derivation_cost_in_module(
    _full_costs: dict[derivation_cost.Cost, int],
) -> Iterator[None]:
    """Use the full cost of key derivations in this module's process, as in production."""
    with _at(_full_costs):
        yield


@pytest.fixture
def full_derivation_cost(_full_costs: dict[derivation_cost.Cost, int]) -> Iterator[None]:
    """Use the full cost of key derivations in this test's process, as in production."""
    with _at(_full_costs):
        yield


@pytest.fixture(scope="session")
def postgres_binaries(pytestconfig: pytest.Config) -> Path:
    """Return the folder of PostgreSQL's programs, for a test that starts its own server."""
    from tests.support.databases.postgres import find_binaries

    return find_binaries(pytestconfig.stash[_CHOSEN_BINARIES])


@pytest.fixture(scope="session")
def postgres_admin_url(pytestconfig: pytest.Config) -> str:
    """Return the superuser's URL of the shared PostgreSQL. A test must never stop that server."""
    given: str | None = getattr(pytestconfig, "workerinput", {}).get(_ADMIN_URL)
    return given or _shared_server(pytestconfig).url


@pytest.fixture
def postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database for this test, and drop it at the end."""
    from tests.support.databases.postgres import OWN_DATABASE, create_database, drop_database

    name = f"{OWN_DATABASE}{secrets.token_hex(8)}"
    yield create_database(postgres_admin_url, name)
    drop_database(postgres_admin_url, name)


@pytest.fixture
def own_postgres(postgres_binaries: Path) -> "Iterator[Postgres]":
    """Yield a durable PostgreSQL server for this test alone, which it may stop, kill and start."""
    from tests.support.databases.postgres import DURABLE_OPTIONS, Postgres

    with Postgres(DURABLE_OPTIONS, binaries=postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> "Iterator[Redis]":
    """Yield the Redis that tests of this process share. Never stop it, and use your own keys."""
    from tests.support.databases.redis import Redis

    with Redis() as server:
        yield server


@pytest.fixture
def own_redis() -> "Iterator[Redis]":
    """Yield a Redis server for this test alone, which it may kill and start."""
    from tests.support.databases.redis import Redis

    with Redis() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database for this test, which runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sma.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> "Iterator[Servers]":
    """Yield the servers that tests of this process share.

    A test must not stop them, and must not count their rows or requests.
    """
    from tests.support.programs.running import Servers

    shared = Servers(tmp_path_factory.mktemp("servers"), postgres_admin_url)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, servers: "Servers") -> "Running":
    """Return a shared running server. The test runs once on each kind of database."""
    return servers.get(request.param)
