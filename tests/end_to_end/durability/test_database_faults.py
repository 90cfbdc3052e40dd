"""A database that answers, and does not do what it is asked: 503 that says why, never 500.

Each fault is played on a real database, with a server that runs on it.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.conftest import FEW_TABLES
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.cameras.renewal import RENEW, RenewingDevice
from tests.support.databases.faults import (
    ON_POSTGRESQL,
    Fault,
    played,
    server_of_a_clerk,
    without_partitions,
)
from tests.support.databases.sqlite_faults import (
    file_of,
    journal_removed,
    removed,
    replaced,
)
from tests.support.problems import assert_problem
from tests.support.programs.running import Running, new_serial, start, wait_until

BATCH = f"{VALIDATE}/batch"


@pytest.fixture(scope="module")
def on_postgresql(
    postgres_admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, str]]:
    """A server whose user is no superuser, and the administrator's URL."""
    with server_of_a_clerk(postgres_admin_url, tmp_path_factory.mktemp("faults")) as served:
        yield served


def failures(client: httpx2.Client, name: str) -> float:
    """How many batches have failed so, as the metrics have it, which always answer."""
    text = client.get("/metrics")
    assert text.status_code == 200, text.text
    sample = f'sma_batch_failures_total{{fault="{name}",writer="validation"}}'
    return next(
        float(line.rpartition(" ")[2]) for line in text.text.splitlines() if line.startswith(sample)
    )


def assert_told(running: Running, camera: Camera, said: str) -> None:
    """Tokens alone and in a batch are 503 that says why; health is 503, and nobody hears FAIL."""
    with running.client() as client:
        for body, path in (
            (wire(camera.token()), VALIDATE),
            ({"tokens": [wire(camera.token()) for _ in range(3)]}, BATCH),
        ):
            response = client.post(path, json=body)
            problem = assert_problem(response, 503)
            assert said in problem["detail"]
            assert "FAIL" not in response.text
            assert "secret-words" not in response.text
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        assert client.get("/health/live").status_code == 200


def assert_serves(running: Running, camera: Camera) -> None:
    """Everything is as before, without a restart."""
    with running.client() as client:
        wait_until(lambda: client.post(VALIDATE, json=wire(camera.token())).status_code == 200, 20)
        wait_until(lambda: client.get("/health").status_code == 200, 20)


@pytest.mark.parametrize("fault", ON_POSTGRESQL.values(), ids=ON_POSTGRESQL.keys())
def test_postgresql_says_what_it_is(on_postgresql: tuple[Running, str], fault: Fault) -> None:
    """Threat 19: 503 with Retry-After, that tells the fault in no words of the driver."""
    running, admin_url = on_postgresql
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        before = failures(client, fault.name)
        with played(running, admin_url, fault):
            assert_told(running, camera, fault.said)
            wait_until(lambda: failures(client, fault.name) >= before + 2, 20)
    assert_serves(running, camera)
    assert "Traceback" not in running.server.said()
    assert "secret-words" not in running.server.said()


def test_a_row_without_a_partition(on_postgresql: tuple[Running, str]) -> None:
    """Threat 19: an outage of the database, and no bug of this program. Probes say so as well."""
    running, admin_url = on_postgresql
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        with without_partitions(admin_url):
            assert_told(running, camera, "no partition")
            assert client.get("/health/ready").status_code == 503
            assert failures(client, "schema") >= 2
    assert_serves(running, camera)
    assert "Traceback" not in running.server.said()


def test_provisioning_and_renewal_say_it_too(on_postgresql: tuple[Running, str]) -> None:
    """Threat 19: and nothing half-made is left. The same requests succeed later."""
    running, admin_url = on_postgresql
    with running.client() as client:
        device = RenewingDevice.provisioned(client)
        requests = {PROVISION: provision_body(new_serial()), RENEW: device.request(supersede=True)}
        for name in ("schema gone", "read-only"):
            fault = ON_POSTGRESQL[name]
            with played(running, admin_url, fault):
                for path, body in requests.items():
                    problem = assert_problem(client.post(path, json=body), 503)
                    assert fault.said in problem["detail"]
        with played(running, admin_url, ON_POSTGRESQL["schema gone"]):
            assert_problem(client.get("/stats"), 503)
        for path, body in requests.items():
            assert client.post(path, json=body).status_code == 200


# --- SQLite


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Running]:
    """A server of the test's own."""
    running = start(tmp_path / "data", "sqlite:", SMA_ANSWER_TIMEOUT="5", **FEW_TABLES)
    yield running
    running.server.close()


def test_sqlite_says_that_a_table_is_gone(on_sqlite: Running) -> None:
    """Threat 19: as PostgreSQL does."""
    with on_sqlite.client() as client:
        camera = Camera.provisioned(client, new_serial())
    for there, elsewhere in (("validation_history", "x"), ("registered_devices", "y")):
        with closing(sqlite3.connect(file_of(on_sqlite))) as file:
            file.execute(f"ALTER TABLE {there} RENAME TO {elsewhere}")
        assert_told(on_sqlite, camera, "lacks a table")
        with closing(sqlite3.connect(file_of(on_sqlite))) as file:
            file.execute(f"ALTER TABLE {elsewhere} RENAME TO {there}")
        assert_serves(on_sqlite, camera)
    with on_sqlite.client() as client:
        assert failures(client, "schema") >= 4


@pytest.mark.parametrize("act", [removed, replaced, journal_removed])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_was_moved_takes_no_verdict(
    tmp_path: Path, act: Callable[[Path], Callable[[], object]], workers: str
) -> None:
    """Threat 30: 503 from the next token on, and probes say so; with the very file it goes on.

    No answer that was given is missing then.
    """
    running = start(tmp_path / "data", "sqlite:", "--workers", workers, **FEW_TABLES)
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        before = [camera.token() for _ in range(5)]
        for token in before:
            assert client.post(VALIDATE, json=wire(token)).status_code == 200
        put_back = act(file_of(running))
        for _ in range(4):
            assert_told(running, camera, "removed or replaced")
            with running.client() as other:
                assert other.get("/health/ready").status_code == 503
        put_back()
        assert_serves(running, camera)
        wait_until(lambda: client.get("/health/ready").status_code == 200, 20)
        assert all(running.audit_rows(token) for token in before)
        assert running.server.terminate() == 0
    assert running.server.said().rstrip().endswith("Stopped. All answers are recorded.")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_whose_file_is_gone_does_not_end_well(tmp_path: Path, workers: str) -> None:
    """Threat 30: its last line does not claim that all is recorded, and its exit code says so."""
    running = start(tmp_path / "data", "sqlite:", "--workers", workers, **FEW_TABLES)
    with running.server:
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
        for part in file_of(running).parent.glob("sma.db*"):
            part.unlink()
        assert running.server.terminate() == 4
    said = running.server.said()
    assert "All answers are recorded" not in said
    assert "removed or replaced" in said
    assert not file_of(running).exists(), "an empty file was made in its place"
