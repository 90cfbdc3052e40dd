"""The checkers of `vectors/checkers/`, built and run as a developer of their language would.

Python, Node, Java and C are always there: what is missing fails the test, with what to type. Go
runs where there is a compiler.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[2] / "vectors"
SOURCES = VECTORS / "checkers"
_SECONDS = 300

ALWAYS = ("python", "javascript", "java", "c")
LANGUAGES = (*ALWAYS, "go") if shutil.which("go") else ALWAYS


@dataclass(frozen=True)
class Checker:
    """A program that checks vectors, seals and opens."""

    language: str
    command: tuple[str, ...]

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )

    def check(self, vectors: Path = VECTORS) -> "subprocess.CompletedProcess[str]":
        """Check a directory of vectors."""
        return self.run("check", str(vectors))

    def seal(self, nuc_hash: bytes, master_key: bytes, table_id: int, key_index: int) -> Any:
        """Have it make a camera token."""
        given = {
            "nuc_hash": nuc_hash.hex(),
            "master_key": master_key.hex(),
            "table_id": table_id,
            "key_index": key_index,
        }
        ran = self.run("seal", stdin=json.dumps(given))
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def open(self, camera_token: dict[str, Any], master_key: bytes) -> bytes | None:
        """Have it open a camera token; None where it refuses."""
        given = {"camera_token": camera_token, "master_key": master_key.hex()}
        ran = self.run("open", stdin=json.dumps(given))
        return bytes.fromhex(ran.stdout) if ran.returncode == 0 else None


@cache
def build(language: str, directory: Path, sources: Path = SOURCES) -> Checker:
    """Build the checker of a language into a directory, once."""
    makers: dict[str, Callable[[Path, Path], tuple[str, ...]]] = {
        "python": lambda source, _: (sys.executable, str(source / "check.py")),
        "javascript": lambda source, _: (_tool("node", "nodejs"), str(source / "check.mjs")),
        "java": _java,
        "c": _c,
        "go": _go,
    }
    return Checker(language, makers[language](sources / language, directory))


def _java(source: Path, directory: Path) -> tuple[str, ...]:
    classes = directory / "java"
    compiler = _tool("javac", "default-jdk-headless")
    _compile([compiler, "-Xlint:all", "-Werror", "-d", str(classes), *_files(source, "*.java")])
    quick = ("-Xshare:auto", "-XX:TieredStopAtLevel=1")
    return (_tool("java", "default-jdk-headless"), *quick, "-cp", str(classes), "Check")


def _c(source: Path, directory: Path) -> tuple[str, ...]:
    program = str(directory / "check-c")
    strict = ["-std=c17", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O1"]
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compiler = _tool("cc", "gcc libc6-dev libssl-dev")
    _compile([compiler, *strict, *sanitized, "-o", program, *_files(source, "*.c"), "-lcrypto"])
    return (program,)


def _go(source: Path, directory: Path) -> tuple[str, ...]:
    program = str(directory / "check-go")
    _compile(["go", "build", "-o", program, "."], cwd=source)
    return (program,)


def _files(source: Path, pattern: str) -> list[str]:
    return [str(file) for file in sorted(source.glob(pattern))]


def _compile(command: list[str], cwd: Path | None = None) -> None:
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_SECONDS, cwd=cwd
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _tool(name: str, packages: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"`{name}` is missing. Type: make setup-tool-chains ({packages})"
    return found
