"""Fixtures: the cluster, two servers on it, a camera, and the table at the end of the run."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import pytest

from tests.high_availability.cluster import DATABASE, Cluster
from tests.high_availability.home import UNPACKED
from tests.high_availability.load import Load
from tests.high_availability.report import Outcome, table, take_stock
from tests.support.cameras.camera import Camera
from tests.support.counting import assert_the_chains_at_verify
from tests.support.programs.running import new_serial, start
from tests.support.programs.server import Server

_OUTCOMES: list[Outcome] = []
_LOG = UNPACKED / "outcomes.jsonl"
"""The outcomes of all runs on this machine, also of those that were broken off."""
_BACK_SECONDS = 60.0
_WHOLE_SECONDS = 120.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play each scenario BIRTHMARK_ROUNDS times: `make test-ha ROUNDS=10`."""
    if "round_number" in metafunc.fixturenames:
        rounds = int(os.environ.get("BIRTHMARK_ROUNDS", "1"))
        metafunc.parametrize("round_number", range(1, rounds + 1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what came of the scenarios."""
    if _OUTCOMES:
        terminalreporter.section("high availability")
        terminalreporter.write_line(table(_OUTCOMES))


class Bed:
    """The cluster with servers on it, whose addresses are `urls`, and a camera."""

    def __init__(self, cluster: Cluster, servers: list[Server], camera: Camera) -> None:
        self.cluster = cluster
        self._servers = servers
        self._camera = camera

    @contextmanager
    def scenario(self, name: str) -> Iterator[tuple[Load, Callable[[], Outcome]]]:
        """Send load during the block. Then wait until all is well, and count.

        Yields the load, and a function that returns the outcome after the block.
        """
        load = Load([server.url for server in self._servers], self._camera)
        outcomes: list[Outcome] = []
        try:
            load.start()
            yield load, outcomes.pop
            load.wait_for_service(_BACK_SECONDS)
        finally:
            load.stop()
        self.cluster.wait_until_whole(_WHOLE_SECONDS)
        self.cluster.wait_until_replayed()
        nodes = [node.url(DATABASE) for node in self.cluster.nodes]
        outcomes.append(take_stock(name, load, nodes))
        for node in nodes:
            assert_the_chains_at_verify(node)
        _OUTCOMES.append(outcomes[0])
        with _LOG.open("a", encoding="utf-8") as log:
            log.write(f"{json.dumps(asdict(outcomes[0]))}\n")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Yield the cluster of all scenarios. Each of them leaves it whole."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Yield two servers whose DATABASE_URL names both nodes."""
    yield from _bed(cluster, cluster.url, tmp_path_factory)


@pytest.fixture(scope="module")
def bed_behind_haproxy(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Yield two servers whose DATABASE_URL is the address of HAProxy."""
    yield from _bed(cluster, cluster.start_haproxy(), tmp_path_factory)


def _bed(cluster: Cluster, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        running = start(folder / "first", url, SMA_TABLES="50")
        first = stack.enter_context(running.server)
        second = stack.enter_context(Server(folder / "second", database_url=url))
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        yield Bed(cluster, [first, second], camera)
