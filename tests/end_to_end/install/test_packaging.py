"""What the wheel without its server brings, and how quickly the client is imported.

The wheel is built and installed into an empty environment with the settings, indexes and cache of
this one, so that whatever can run `make setup` can run these tests.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from birthmark_sma import HOW_TO_INSTALL

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).parent / "uv"

ALLOWED = {
    "birthmark-sma",
    # cryptography, and what it needs
    "cryptography",
    "cffi",
    "pycparser",
    # the HTTP client, and what it needs
    "httpx2",
    "httpcore2",
    "h11",
    "anyio",
    "idna",
    "truststore",
    "typing-extensions",
}


def run(*command: str | Path, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, without what would lead it to this environment's packages."""
    environ = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment into which nothing was installed but the wheel."""
    place = tmp_path_factory.mktemp("packaging")
    done = run(UV, "venv", "--python", sys.executable, place / "empty")
    assert done.returncode == 0, done.stderr
    installed = run(
        *(UV, "pip", "install", "--python", place / "empty" / "bin" / "python"),
        *("--constraint", ROOT / "requirements" / "run.lock", wheel),
    )
    assert installed.returncode == 0, installed.stderr
    return place / "empty"


def test_what_a_client_installs(empty_environment: Path) -> None:
    """At most cryptography, the HTTP client and their needs."""
    python = empty_environment / "bin" / "python"
    listed = run(UV, "pip", "list", "--python", python, "--format", "json")
    assert listed.returncode == 0, listed.stderr
    names = {each["name"] for each in json.loads(listed.stdout)}
    assert {"birthmark-sma", "cryptography", "httpx2"} <= names
    assert names <= ALLOWED


def test_the_client_works_there(empty_environment: Path) -> None:
    """Every public name can be had, and an authority that is away is no FAIL."""
    program = (
        "from birthmark_sma import client\n"
        "from birthmark_sma.protocol.camera_token import CameraToken\n"
        "for name in client.__all__: getattr(client, name)\n"
        "with client.AuthorityClient('http://127.0.0.1:9') as authority:\n"
        "    print(authority.validate(CameraToken(bytes(48), 1, 2, bytes(12))))\n"
    )
    ran = run(empty_environment / "bin" / "python", "-c", program, cwd=empty_environment)
    assert (ran.stdout, ran.stderr) == ("INDETERMINATE\n", "")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("serve",)])
def test_sma_says_what_to_install(empty_environment: Path, arguments: tuple[str, ...]) -> None:
    """Without the extra `server`, one sentence and no traceback."""
    for command in (["sma"], ["python", "-m", "birthmark_sma"]):
        program = empty_environment / "bin" / command[0]
        ran = run(program, *command[1:], *arguments, cwd=empty_environment)
        assert (ran.returncode, ran.stdout) == (3, "")
        assert ran.stderr.endswith(f"{HOW_TO_INSTALL}\n")
        assert ran.stderr.count("\n") == 1


def started_in(program: str) -> float:
    """How many CPU seconds a Python process takes for a program, as the median of five."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(took)


def test_the_client_is_imported_quickly() -> None:
    """Less than 150 ms of CPU time more than Python itself takes to start."""
    bare = started_in("pass")
    assert started_in("import birthmark_sma.client") - bare < 0.15


def test_the_import_loads_nothing_heavy() -> None:
    """HTTP and cryptography come with the first name that needs them; the server's parts never."""
    program = (
        "import sys, birthmark_sma.client as client;"
        "heavy = {'httpx2', 'cryptography', 'asyncio', 'ssl'};"
        "print(heavy & {*sys.modules});"
        "[getattr(client, name) for name in client.__all__];"
        "server = {'sqlalchemy', 'fastapi', 'pydantic', 'typer', 'uvicorn', 'structlog'};"
        "print(server & {*sys.modules})"
    )
    ran = run(sys.executable, "-c", program)
    assert ran.stdout == "set()\nset()\n"
