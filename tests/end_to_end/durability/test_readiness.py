"""`/health/ready` tells the truth: 503 while nothing can be recorded, 200 soon after the fault.

Each fault is played on a real database. The load balancer of these tests sends camera tokens only
while the last probe was 200, so a server must find out by itself that a fault is over.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.conftest import FEW_TABLES
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera, provision_body, wire
from tests.support.databases.faults import (
    ON_POSTGRESQL,
    SLOW_COMMITS,
    Fault,
    locked,
    played,
    run_statements,
    server_of_a_clerk,
    standby_away,
)
from tests.support.databases.postgres import Postgres
from tests.support.databases.sqlite_faults import full_disk, locked_file
from tests.support.programs.running import Running, new_serial, start, wait_until, workers_of

UNREADY_SECONDS = 20
READY_SECONDS = 20
LASTING_SECONDS = 4
CONNECTIONS = 4


class LoadBalancer:
    """Probes a server ten times a second, and sends camera tokens while it is ready.

    With `stubborn` it sends them all the time.
    """

    def __init__(self, running: Running, *, stubborn: bool = False) -> None:
        self._running = running
        self._stubborn = stubborn
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._probe)]
        self._threads += [threading.Thread(target=self._send) for _ in range(CONNECTIONS)]
        self.is_ready = False
        self.statuses: list[int] = []
        """Of all tokens."""
        self.lives: list[int] = []
        """Of the liveness probes."""
        with running.client() as client:
            self._camera = Camera.provisioned(client, new_serial())

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(60)

    def recorded(self) -> bool:
        """Return True if a token that is sent from now on gets a verdict within 3 seconds."""
        before = len(self.statuses)
        time.sleep(3)
        return 200 in self.statuses[before:]

    def _probe(self) -> None:
        with self._running.client() as client:
            while not self._over.wait(0.1):
                self.is_ready = client.get("/health/ready").status_code == 200
                self.lives.append(client.get("/health/live").status_code)

    def _send(self) -> None:
        with self._running.client() as client:
            while not self._over.wait(0.05):
                if self.is_ready or self._stubborn:
                    response = client.post(VALIDATE, json=wire(self._camera.token()))
                    self.statuses.append(response.status_code)


def assert_tells_the_truth(
    running: Running, fault: AbstractContextManager[object], *, stubborn: bool = False
) -> None:
    """Ready follows the fault, live does not; nothing of the probing writes is left."""
    with LoadBalancer(running, stubborn=stubborn) as balancer:
        wait_until(lambda: balancer.is_ready, READY_SECONDS)
        wait_until(lambda: 200 in balancer.statuses, READY_SECONDS)
        with fault:
            wait_until(lambda: not balancer.is_ready, UNREADY_SECONDS)
            before = len(balancer.statuses)
            until = time.monotonic() + LASTING_SECONDS
            while time.monotonic() < until:
                assert not balancer.is_ready
                time.sleep(0.05)
            assert 200 not in balancer.statuses[before:]
        wait_until(lambda: balancer.is_ready, READY_SECONDS)
        wait_until(balancer.recorded, READY_SECONDS)
        assert set(balancer.lives) == {200}
    left = (
        "SELECT 1 FROM validation_history WHERE request_ip IS NULL",
        "SELECT 1 FROM registered_devices WHERE device_family = 'sma-write-check'",
        "SELECT 1 FROM device_family_counters WHERE device_family = 'sma-write-check'",
        "SELECT 1 FROM sighted_tokens WHERE first_caller = ''",
    )
    assert [running.rows(each) for each in left] == [[]] * len(left)
    assert "Traceback" not in running.server.said()


# --- PostgreSQL


@pytest.fixture(scope="module")
def served(
    postgres_admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, str]]:
    """A server whose user is no superuser, and the administrator's URL."""
    directory = tmp_path_factory.mktemp("readiness")
    with server_of_a_clerk(postgres_admin_url, directory, **FEW_TABLES) as served:
        yield served


REFUSING = {
    name: ON_POSTGRESQL[name] for name in ("disk full", "read-only", "permission", "schema gone")
}


@pytest.mark.parametrize("fault", REFUSING.values(), ids=REFUSING.keys())
def test_postgresql_refuses_writes(served: tuple[Running, str], fault: Fault) -> None:
    running, admin_url = served
    assert_tells_the_truth(running, played(running, admin_url, fault))


def test_a_table_is_locked(served: tuple[Running, str]) -> None:
    running, admin_url = served
    assert_tells_the_truth(running, locked(admin_url))


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_commit_takes_12_seconds(served: tuple[Running, str], stubborn: bool) -> None:
    running, admin_url = served
    with LoadBalancer(running, stubborn=stubborn) as balancer:
        wait_until(lambda: 200 in balancer.statuses, READY_SECONDS)
        with played(running, admin_url, SLOW_COMMITS):
            wait_until(lambda: not balancer.is_ready, UNREADY_SECONDS)
            until = time.monotonic() + 20  # more than a commit
            while time.monotonic() < until:
                assert not balancer.is_ready
                time.sleep(0.05)
        wait_until(lambda: balancer.is_ready, 40)
        wait_until(balancer.recorded, READY_SECONDS)
        assert set(balancer.lives) == {200}


def test_the_synchronous_standby_is_away(own_postgres: Postgres, tmp_path: Path) -> None:
    """A commit waits for ever. A write that is merely rolled back would not."""
    running = start(tmp_path / "data", own_postgres.create_database("sma"), **FEW_TABLES)

    with running.server:
        assert_tells_the_truth(running, standby_away(own_postgres.url))


# --- SQLite


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Running]:
    """A server of the test's own."""
    running = start(tmp_path / "data", "sqlite:", **FEW_TABLES)
    with running.server:
        yield running


def test_the_disk_of_sqlite_is_full(on_sqlite: Running) -> None:
    assert_tells_the_truth(on_sqlite, full_disk(on_sqlite))


@pytest.mark.parametrize("stubborn", [False, True])
def test_sqlite_is_locked(on_sqlite: Running, stubborn: bool) -> None:
    assert_tells_the_truth(on_sqlite, locked_file(on_sqlite), stubborn=stubborn)


# --- beside the faults


def test_no_worker_says_ready_while_another_cannot_write(
    postgres_admin_url: str, tmp_path: Path
) -> None:
    """The tokens go to one process, the probes to both."""
    with server_of_a_clerk(postgres_admin_url, tmp_path, SMA_WORKERS="2", **FEW_TABLES) as served:
        running, admin_url = served
        assert len(workers_of(running)) == 2

        def probes() -> set[int]:
            return {probe(running) for _ in range(20)}

        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            with played(running, admin_url, ON_POSTGRESQL["permission"]):
                assert client.post(VALIDATE, json=wire(camera.token())).status_code == 503
                wait_until(lambda: probes() == {503}, UNREADY_SECONDS)
                time.sleep(LASTING_SECONDS)
                assert probes() == {503}
            wait_until(lambda: probes() == {200}, READY_SECONDS)


def probe(running: Running) -> int:
    """Return the status of a readiness probe over a connection of its own."""
    with running.client() as client:
        return client.get("/health/ready").status_code


def test_a_probe_writes_nothing_on_a_healthy_server(served: tuple[Running, str]) -> None:
    """A probing write takes a number of the sequence, although it is undone."""
    running, _ = served
    wait_until(lambda: probe(running) == 200, READY_SECONDS)
    newest = "SELECT last_value FROM validation_history_id_seq"
    before = running.rows(newest)
    for _ in range(20):
        assert probe(running) == 200
        time.sleep(0.1)
    assert running.rows(newest) == before


def test_devices_cannot_be_registered(served: tuple[Running, str]) -> None:
    """The writer of provisioning counts as well."""
    running, admin_url = served
    role = urlsplit(running.database_url).username
    with running.client() as client:
        wait_until(lambda: probe(running) == 200, READY_SECONDS)
        run_statements(admin_url, f"REVOKE INSERT ON registered_devices FROM {role}")
        assert client.post(PROVISION, json=provision_body(new_serial())).status_code == 503
        wait_until(lambda: probe(running) == 503, UNREADY_SECONDS)
        time.sleep(LASTING_SECONDS)
        assert probe(running) == 503
        run_statements(admin_url, f"GRANT INSERT ON registered_devices TO {role}")
        wait_until(lambda: probe(running) == 200, READY_SECONDS)
        assert client.post(PROVISION, json=provision_body(new_serial())).status_code == 200


@pytest.mark.parametrize("name", ["permission", "read-only"])
def test_a_server_that_starts_during_a_fault_is_not_ready(
    served: tuple[Running, str], name: str, tmp_path: Path
) -> None:
    """No token was sent to it yet."""
    running, admin_url = served
    with played(running, admin_url, ON_POSTGRESQL[name]):
        second = start(tmp_path / "data", running.database_url)
        with second.server:
            wait_until(lambda: probe(second) == 503, UNREADY_SECONDS)
    wait_until(lambda: probe(running) == 200, READY_SECONDS)
