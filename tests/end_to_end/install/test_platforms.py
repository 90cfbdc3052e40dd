"""Play the file of each hosting platform: release, web, killed, and started on an empty disk.

The commands run in an empty folder with the variables that the platform sets, and no others.
"""

import shutil
from pathlib import Path

import httpx2
import pytest

from tests.support.cameras.camera import Camera
from tests.support.deployment.platforms import PLATFORMS, Platform
from tests.support.deployment.played import Remote, arguments_of, deployed, environ_of
from tests.support.programs.commands import sma
from tests.support.programs.running import query


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest) -> Platform:
    """Return each platform."""
    return PLATFORMS[request.param]()


def test_without_an_authority_the_release_stops(
    platform: Platform, postgres_url: str, tmp_path: Path
) -> None:
    """One sentence names `sma init`, nothing is created, and the deployment does not go on."""
    environ = environ_of(platform, postgres_url)
    for command in (platform.release, platform.web):
        stopped = sma(*arguments_of(command), environ=environ, cwd=tmp_path)
        assert stopped.returncode == 4, stopped.stderr
        assert stopped.stderr.count("\n") == 1, stopped.stderr
        assert "sma init" in stopped.stderr
    assert not query(postgres_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["heroku", "railway", "fly"])
def test_the_root_key_never_exists_on_a_platform(
    name: str, postgres_url: str, tmp_path: Path
) -> None:
    """Threat 47: `sma init` refuses before it makes a key that the platform would delete."""
    environ = environ_of(PLATFORMS[name](), postgres_url)
    refused = sma("init", environ=environ, cwd=tmp_path)
    assert refused.returncode == 3
    assert "on your own machine" in refused.stderr
    assert not query(postgres_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
    assert not list(tmp_path.iterdir())


def test_a_platform_is_played(platform: Platform, remote: Remote, tmp_path: Path) -> None:
    """Release, web, SIGKILL, and web again where nothing of the first is left."""
    (tmp_path / "release").mkdir()
    released = sma(
        *arguments_of(platform.release),
        environ=environ_of(platform, remote.url),
        cwd=tmp_path / "release",
    )
    assert released.returncode == 0, released.stderr
    with deployed(platform, remote.url, tmp_path / "web-1") as first:
        health = httpx2.get(f"{first.url}/health", trust_env=False)
        assert (health.status_code, health.json()) == (200, {"status": "healthy"})
        with first.client(remote.keys["provision"]) as factory:
            camera = Camera.provisioned(factory, "camera-1")
        token = camera.token()
        assert first.verdict(remote.keys["validate"], token) == "PASS"
        first.process.kill()
        first.process.wait(30)
    shutil.rmtree(tmp_path / "web-1")
    with deployed(platform, remote.url, tmp_path / "web-2") as second:
        assert second.verdict(remote.keys["validate"], token) == "PASS"
        with second.client(remote.keys["admin"]) as operator:
            assert operator.get("/stats").json()["total_devices"] == 1
        assert second.stop() == 0, second.said()
    # On a machine of its own, the server stands behind a proxy of that machine.
    host = "127.0.0.1" if "/opt" in platform.web[0] else "0.0.0.0"
    assert f"http://{host}:" in second.said()
    assert not list((tmp_path / "web-2").iterdir())
