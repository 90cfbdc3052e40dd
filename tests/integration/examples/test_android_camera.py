"""The Android camera's Kotlin source compiles, against no more of Android than it uses."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.cameras.checkers import COMPILERS

SOURCES = Path(__file__).parents[3] / "examples" / "android"
STUBS = Path(__file__).parents[2] / "support" / "cameras" / "android"
KOTLIN = COMPILERS["kotlin"]
SECONDS = 300
QUICK = "-Xmx512M -Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""The compiler runs once: the JVM would not earn back what it spends on making it faster."""


@pytest.mark.skipif(KOTLIN is None, reason="no Kotlin compiler: make setup-tool-chains")
def test_the_camera_compiles(tmp_path: Path) -> None:
    """Without warnings. The compiler reads the Java beside it, and has no JAR of Android's."""
    assert KOTLIN is not None
    [camera] = SOURCES.rglob("BirthmarkCamera.kt")
    files = [camera, *SOURCES.rglob("CameraCore.java"), *STUBS.rglob("*.java")]
    ran = subprocess.run(
        [KOTLIN, "-Werror", "-Wextra", "-d", str(tmp_path), *map(str, files)],
        env=os.environ | {"JAVA_OPTS": QUICK},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "org" / "birthmark" / "camera" / "BirthmarkCamera.class").exists()
