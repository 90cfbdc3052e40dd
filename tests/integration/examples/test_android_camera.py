"""The Android camera's Kotlin, compiled and run on a JVM with a Keystore of files.

What it needs of Android is in tests/support/cameras/android.
"""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.examples.test_renewals import (
    FUTURE,
    PAST,
    Program,
    Relay,
    current,
    judge,
)
from tests.support.cameras.checkers import COMPILERS
from tests.support.http.faulty_server import FaultyServer, Visit
from tests.support.programs.running import Running, new_serial
from tests.support.soak import times

SOURCES = Path(__file__).parents[3] / "examples" / "android"
ANDROID = Path(__file__).parents[2] / "support" / "cameras" / "android"
KOTLIN = COMPILERS["kotlin"]
SECONDS = 300
KILLS = times(5, 40)
QUICK = "-Xmx512M -Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""The compiler runs once: the JVM would not earn back what it spends on making it faster."""

pytestmark = pytest.mark.skipif(KOTLIN is None, reason="no Kotlin compiler: make setup-tool-chains")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compile the camera without warnings, and what runs it; return the class path.

    The compiler reads the Java beside it, and has no JAR of Android's.
    """
    assert KOTLIN is not None
    place = tmp_path_factory.mktemp("kotlin")
    [camera] = SOURCES.rglob("BirthmarkCamera.kt")
    core = [*SOURCES.rglob("CameraCore.java"), *(ANDROID / "android").rglob("*.java")]
    runner = [*(ANDROID / "run").rglob("*.java")]
    library = next(Path(KOTLIN).resolve().parents[1].rglob("kotlin-stdlib.jar"))
    path = f"{place}{os.pathsep}{library}"
    for command in (
        ["bash", KOTLIN, "-Werror", "-Wextra", "-d", str(place), *map(str, [camera, *core])],
        ["javac", "-Xlint:all", "-Werror", "-cp", path, "-d", str(place), *map(str, core + runner)],
    ):
        ran = subprocess.run(
            command,
            env=os.environ | {"JAVA_OPTS": QUICK},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    return path


Phone = Callable[[str, str], Program]


@pytest.fixture
def phone(compiled: str, tmp_path: Path) -> Phone:
    """Make a phone: `phone(url, serial)`. It renews at each run, if it is time."""
    (tmp_path / "picture.jpg").write_bytes(b"a picture")
    for name in ("keys", "files"):
        (tmp_path / name).mkdir()
    command = ["java", "-XX:TieredStopAtLevel=1", "-Dkeys=keys", "-cp", compiled, "run.Phone"]
    return lambda url, serial: Program([*command, url, serial, "picture.jpg", "files"], tmp_path)


def test_renewed_while_it_captures(sandbox: Running, phone: Phone, tmp_path: Path) -> None:
    """Keys of a new alias; no bundle mixes old and new; the old keys are deleted."""
    serial = new_serial()
    relay = Relay(sandbox)
    with FaultyServer(relay) as server:
        camera = phone(server.url, serial)
        first, said = camera.capture()
        assert relay.renewals == []
        assert "next call in 3600000 ms" in said
        before = {judge(sandbox, line, serial) for line in first.splitlines()[:3]}
        assert len(before) == 1
        relay.window = PAST
        bundles, said = camera.capture()
        assert len(relay.renewals) == 1
        assert "next call in 21600000 ms" in said
        relay.window = FUTURE
        camera.capture()
    lines = bundles.splitlines()
    serials = [judge(sandbox, line, serial) for line in lines[:: max(1, len(lines) // 40)]]
    last = judge(sandbox, lines[-1], serial)
    assert last == current(sandbox, serial)
    assert set(serials) <= before | {last}
    assert serials[0] in before
    aliases = {path.name for path in (tmp_path / "keys").iterdir()}
    assert aliases == {"birthmark-signing-1", "birthmark-agreement-1", "birthmark-storage"}


@pytest.mark.parametrize("status", [403, 409, 503])
def test_refused(sandbox: Running, phone: Phone, status: int) -> None:
    """It captures on, and pauses. A CSR that is refused for good is replaced."""
    serial = new_serial()
    relay = Relay(sandbox)
    with FaultyServer(relay) as server:
        camera = phone(server.url, serial)
        before = judge(sandbox, camera.capture()[0].splitlines()[-1], serial)
        relay.window = PAST

        def act(visit: Visit) -> bool:
            visit.answer({"detail": "no"}, status, Retry_After="7200")
            return True

        relay.answer_first = act
        bundles, said = camera.capture()
        assert judge(sandbox, bundles.splitlines()[-1], serial) == before
        assert "next call in 7200000 ms" in said
        relay.answer_first = None
        bundles, _ = camera.capture()
    assert judge(sandbox, bundles.splitlines()[-1], serial) == current(sandbox, serial) != before
    assert len({body["csr"] for body in relay.renewals}) == (2 if status == 409 else 1)


def test_killed_while_it_renews(sandbox: Running, phone: Phone, tmp_path: Path) -> None:
    """Threats 8 and 30: when the authority has answered, and at random times."""
    serial = new_serial()
    relay = Relay(sandbox)
    with FaultyServer(relay) as server:
        camera = phone(server.url, serial)
        camera.capture()
        relay.window = PAST
        process = camera.start()

        def kill(_: Visit) -> bool:
            process.kill()
            return True

        relay.act = kill
        process.communicate(timeout=SECONDS)
        assert len(relay.renewals) == 1
        relay.act = lambda _: False
        for _ in range(KILLS):
            process = camera.start()
            try:
                process.communicate(timeout=random.SystemRandom().uniform(0.1, 2))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        bundles, _ = camera.capture()
    assert judge(sandbox, bundles.splitlines()[-1], serial) == current(sandbox, serial)
    earlier = "SELECT count(*) FROM earlier_certificates WHERE device_serial = ?"
    assert sandbox.rows(earlier, serial) == [(len({b["csr"] for b in relay.renewals}),)]
    assert len(list((tmp_path / "keys").glob("birthmark-signing-*"))) == 1
