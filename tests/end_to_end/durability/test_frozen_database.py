"""Threat 19: a PostgreSQL that hangs and acknowledges every packet, under a server and commands."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera, provision_body, wire
from tests.support.counting import assert_the_chains_at_verify
from tests.support.databases.frozen_proxy import FrozenProxy, through_all
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial, query, start, wait_until

CALLERS = 8
FROZEN_SECONDS = 12.0  # longer than any deadline of the writers
BACK_SECONDS = 5.0  # after the fault has ended
TAKE_OVER_SECONDS = 20.0  # 8 s for the call, 3 s for the connection attempt, and a busy machine
ENDED_SECONDS = 10.0


class Load:
    """Callers that validate a new token each time, until they are stopped."""

    def __init__(self, running: Running, camera: Camera) -> None:
        self.answered_at = 0.0
        """When the last verdict came."""
        self.acknowledged: list[CameraToken] = []
        self.statuses: set[int] = set()
        self._running = running
        self._camera = camera
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(CALLERS)
        self._callers = [self._threads.submit(self._call) for _ in range(CALLERS)]

    def stop(self) -> None:
        """Let every caller have its last answer. Raises the first error of one of them."""
        self._stopped.set()
        for caller in self._callers:
            caller.result(60)
        self._threads.shutdown()

    def _call(self) -> None:
        with self._running.client() as client:
            while not self._stopped.is_set():
                token = self._camera.token()
                answer = client.post(VALIDATE, json=wire(token))
                self.statuses.add(answer.status_code)
                if answer.status_code == 200:
                    assert answer.json()["validation_result"] == "PASS"
                    self.acknowledged.append(token)
                    self.answered_at = time.monotonic()
                else:
                    time.sleep(0.05)


def assert_recorded_once(database_url: str, tokens: list[CameraToken]) -> None:
    """Every acknowledged verdict has its row, and no token has two."""
    rows = query(
        database_url,
        "SELECT encrypted_nuc_hash, count(*) FROM validation_history GROUP BY encrypted_nuc_hash",
    )
    times = {bytes(token): number for token, number in rows}
    assert set(times.values()) == {1}
    missing = [token for token in tokens if token.encrypted_nuc_hash not in times]
    assert not missing, f"{len(missing)} of {len(tokens)} acknowledged verdicts have no row"
    assert_the_chains_at_verify(database_url)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FrozenProxy]:
    """Stand between the server and its database."""
    with FrozenProxy(postgres_url) as proxy:
        yield proxy


def is_served(client: httpx2.Client, camera: Camera) -> bool:
    """Return whether a token gets its verdict and a device its certificate."""
    provisioned = client.post(PROVISION, json=provision_body(new_serial()))
    verdict = client.post(VALIDATE, json=wire(camera.token()))
    return (provisioned.status_code, verdict.status_code) == (200, 200)


def test_service_is_back_when_the_fault_ends(
    proxy: FrozenProxy, postgres_url: str, tmp_path: Path
) -> None:
    """Threats 19 and 30: no verdict is lost or doubled, and none was a FAIL."""
    running = start(tmp_path / "data", proxy.url, SMA_TABLES="50")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        load = Load(running, camera)
        wait_until(lambda: len(load.acknowledged) > 200, 30)
        proxy.freeze()
        time.sleep(FROZEN_SECONDS)
        proxy.thaw()
        thawed = time.monotonic()
        wait_until(lambda: load.answered_at > thawed, BACK_SECONDS)
        wait_until(lambda: is_served(client, camera), BACK_SECONDS)
        load.stop()
    assert load.statuses <= {200, 503}
    assert "did not answer a call in time" in running.server.said()
    assert_recorded_once(postgres_url, load.acknowledged)


def test_a_second_host_takes_over_while_the_first_stays_frozen(
    proxy: FrozenProxy, postgres_url: str, tmp_path: Path
) -> None:
    """Service is back though the fault goes on, also for provisioning and probes."""
    with FrozenProxy(postgres_url) as second:
        running = start(tmp_path / "data", through_all(proxy, second), SMA_TABLES="50")
        with running.server, running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            load = Load(running, camera)
            wait_until(lambda: len(load.acknowledged) > 200, 30)
            proxy.freeze()
            time.sleep(0.5)  # what was under way has been answered
            frozen = time.monotonic()
            wait_until(lambda: load.answered_at > frozen, TAKE_OVER_SECONDS)
            wait_until(lambda: is_served(client, camera), TAKE_OVER_SECONDS)
            wait_until(lambda: client.get("/health/ready").status_code == 200, TAKE_OVER_SECONDS)
            load.stop()
        assert load.statuses <= {200, 503}
        assert_recorded_once(postgres_url, load.acknowledged)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_signal_ends_a_server_whose_database_hangs(
    proxy: FrozenProxy, postgres_url: str, tmp_path: Path, workers: str
) -> None:
    """Within ten seconds, with requests under way. What was acknowledged is recorded."""
    running = start(tmp_path / "data", proxy.url, "--workers", workers, SMA_TABLES="50")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        tokens = [camera.token() for _ in range(20)]
        assert {client.post(VALIDATE, json=wire(each)).status_code for each in tokens} == {200}
        proxy.freeze()
        with ThreadPoolExecutor(CALLERS) as threads:
            hanging = [
                threads.submit(client.post, VALIDATE, json=wire(camera.token()))
                for _ in range(CALLERS)
            ]
            time.sleep(1.0)
            began = time.monotonic()
            running.server.process.send_signal(signal.SIGTERM)
            running.server.process.wait(2 * ENDED_SECONDS)
            assert time.monotonic() - began < ENDED_SECONDS
            for each in hanging:
                answer = None if each.exception(10) else each.result()
                assert answer is None or answer.status_code == 503
    assert_recorded_once(postgres_url, tokens)


@pytest.mark.parametrize(
    "arguments", [["devices", "list"], ["keys", "list"], ["devices", "suspend", "camera"]]
)
def test_a_command_ends(proxy: FrozenProxy, tmp_path: Path, arguments: list[str]) -> None:
    """It says what is wrong, instead of waiting for as long as the fault lasts."""
    running = start(tmp_path / "data", proxy.url, SMA_TABLES="50")
    running.server.close()
    proxy.freeze()
    began = time.monotonic()
    ended = sma(*arguments, environ=running.environ)
    assert time.monotonic() - began < 2 * ENDED_SECONDS
    assert ended.returncode != 0
    assert "The database does not answer" in ended.stderr
