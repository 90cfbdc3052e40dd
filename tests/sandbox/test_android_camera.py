"""The Android camera's Kotlin source compiles, against no more of Android than it uses."""

import subprocess
from pathlib import Path

import pytest

from tests.support.checkers import COMPILERS

SOURCES = Path(__file__).parents[2] / "examples" / "android"
STUBS = Path(__file__).parents[1] / "support" / "android"
KOTLIN = COMPILERS["kotlin"]
SECONDS = 300


@pytest.mark.skipif(KOTLIN is None, reason="no Kotlin compiler: make setup-tool-chains")
def test_the_camera_compiles(tmp_path: Path) -> None:
    """Without warnings. The compiler reads the Java beside it, and has no JAR of Android's."""
    assert KOTLIN is not None
    [camera] = SOURCES.rglob("BirthmarkCamera.kt")
    files = [camera, *SOURCES.rglob("CameraCore.java"), *STUBS.rglob("*.java")]
    ran = subprocess.run(
        [KOTLIN, "-Werror", "-Wextra", "-d", str(tmp_path), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "org" / "birthmark" / "camera" / "BirthmarkCamera.class").exists()
