"""A second deployment loses no request, and a start waits for its database."""

import threading
from pathlib import Path

import httpx2
import pytest

from tests.support.access_keys import bearer
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.postgres import Postgres
from tests.support.deployment.platforms import PLATFORMS
from tests.support.deployment.played import (
    PASSPHRASE,
    Deployment,
    Remote,
    arguments_of,
    create_key,
    deployed,
    environ_of,
    machine,
)
from tests.support.programs.commands import sma
from tests.support.programs.running import query, wait_until

HEROKU = PLATFORMS["heroku"]()
CLIENTS = 4


class Router:
    """Clients that validate without a pause, each through the deployment that is current.

    As the routers of platforms do, they try again if a connection is refused. Any other failure
    would be a lost request, because the deployment may have recorded it.
    """

    def __init__(self, first: Deployment, key: str, camera: Camera) -> None:
        self.current = first
        self.answers: list[str] = []
        self._key, self._camera = key, camera
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)]

    def _send(self) -> None:
        while not self._ended.is_set():
            body, headers = wire(self._camera.token()), bearer(self._key)
            # A connection for each request, without TLS and so without a context for it.
            with httpx2.Client(verify=False, trust_env=False, timeout=30) as client:
                try:
                    url = f"{self.current.url}{VALIDATE}"
                    answer = client.post(url, json=body, headers=headers)
                    self.answers.append(str(answer.json().get("validation_result")))
                except httpx2.ConnectError:
                    continue
                except httpx2.TransportError as error:
                    self.answers.append(repr(error))

    def wait_for(self, more: int) -> None:
        """Wait until the clients have got this many answers more."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + more, 60)

    def __enter__(self) -> "Router":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop sending, and wait for the last answers."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_a_second_deployment_loses_no_request(remote: Remote, tmp_path: Path) -> None:
    """Release while the first serves. Then the second serves, and the first gets SIGTERM."""
    with deployed(HEROKU, remote.url, tmp_path / "first") as first:
        with first.client(remote.keys["provision"]) as factory:
            camera = Camera.provisioned(factory, "camera-1")
        with Router(first, remote.keys["validate"], camera) as router:
            router.wait_for(20)
            released = sma(
                *arguments_of(HEROKU.release),
                environ=environ_of(HEROKU, remote.url),
                cwd=tmp_path,
            )
            assert released.returncode == 0, released.stderr
            with deployed(HEROKU, remote.url, tmp_path / "second") as second:
                router.wait_for(20)
                router.current = second
                assert first.stop() == 0, first.said()
                router.wait_for(20)
                router.end()
    assert set(router.answers) == {"PASS"}
    rows = query(remote.url, "SELECT count(*) FROM validation_history")
    assert rows == [(len(router.answers),)]


@pytest.fixture
def slow_database(own_postgres: Postgres, tmp_path: Path) -> Postgres:
    """Return a PostgreSQL that is stopped, with an authority and an access key in it."""
    environ = machine(
        {
            "DATABASE_URL": own_postgres.url,
            "CA_PASSWORD": PASSPHRASE,
            "SMA_TABLES": "5",
            "SMA_CA_KEY_TYPE": "ec-p256",
        }
    )
    assert sma("init", environ=environ, cwd=tmp_path).returncode == 0
    create_key(environ, tmp_path / "admin", "admin")
    own_postgres.stop()
    return own_postgres


def test_a_start_waits_for_the_database(slow_database: Postgres, tmp_path: Path) -> None:
    """A line a second, and the server serves once the database answers."""
    deployment = Deployment(HEROKU, slow_database.url, tmp_path / "web")
    try:
        wait_until(lambda: deployment.said().count("Trying again for 4") >= 3, 30)
        assert deployment.process.poll() is None
        slow_database.start()
        wait_until(deployment.is_ready, 30)
        slow_database.stop()
        health = httpx2.get(f"{deployment.url}/health", trust_env=False, timeout=30)
        assert (health.status_code, health.json()) == (503, {"status": "unhealthy"})
        assert deployment.stop() == 0
    finally:
        deployment.process.kill()
    said = deployment.said().splitlines()
    waited = [line for line in said if "Trying again" in line]
    assert len(waited) == len(set(waited)), "each second has one line, with the time that is left"
    assert "DATABASE_URL" in waited[0]
    assert all(line.startswith("The database does not answer.") for line in waited[1:])


@pytest.mark.parametrize("command", [HEROKU.release, HEROKU.web], ids=["release", "web"])
def test_the_wait_has_a_limit(command: list[str], tmp_path: Path) -> None:
    """Then it exits as before, so that the platform shows a failed start. No secret is shown."""
    url = "postgresql://sma:n33dle@127.0.0.1:1/sma"
    environ = environ_of(HEROKU, url) | {"SMA_DATABASE_WAIT": "1.5"}
    ended = sma(*arguments_of(command), environ=environ, cwd=tmp_path)
    assert ended.returncode == 4
    *waited, last = ended.stderr.splitlines()
    assert 1 <= len(waited) <= 3
    assert all("Trying again" in line for line in waited)
    assert last.startswith("sma: The database does not answer")
    assert "n33dle" not in ended.stderr
