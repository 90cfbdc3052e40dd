"""With only the wheel and a PostgreSQL URL: from install to the first PASS, word by word."""

import resource
import shutil
from pathlib import Path

import httpx2

from tests.support.deployment.readme import DEFAULT_URL, EXAMPLE_DATABASE, block
from tests.support.deployment.stranger import Stranger
from tests.support.http.ports import free_port
from tests.support.programs.running import wait_until

MOST_CPU_SECONDS = 120
"""On a machine that does nothing else, this is the time that a reader waits at most."""


def cpu_seconds() -> float:
    """Return the CPU time of the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_from_install_to_the_first_pass(wheel: Path, postgres_url: str, tmp_path: Path) -> None:
    """The README's commands, typed by another user in an empty folder, with two values changed.

    Its database and its port are those of this test. It has the settings of a real authority.
    """
    assert shutil.which("curl"), "install curl"
    assert shutil.which("openssl"), "install openssl"
    before = cpu_seconds()
    port, log = free_port(), tmp_path / "server.log"
    url = f"http://127.0.0.1:{port}"
    install = block("sh", "[server]").replace(".venv/bin/sma serve\n", "")
    serve = block("sh", "DATABASE_URL").replace(EXAMPLE_DATABASE, f"'{postgres_url}'")
    with Stranger() as reader:
        reader.give(wheel)
        reader.environ["PORT"] = str(port)
        reader.shell(install)
        server = reader.start(["sh", "-e", "-c", serve.replace("sma serve", "exec sma serve")], log)
        try:
            wait_until(lambda: server.poll() is not None or is_ready(url), 200)
            assert server.poll() is None, log.read_text(encoding="utf-8")
            reader.shell(block("sh", "devices/provision").replace(DEFAULT_URL, url))
            program = reader.folder / "first_pass.py"
            program.write_text(block("python", "derive_key").replace(DEFAULT_URL, url))
            assert reader.shell(".venv/bin/python first_pass.py").stdout == "PASS\n"
            server.terminate()
            assert server.wait(60) == 0, log.read_text(encoding="utf-8")
        finally:
            server.kill()
        private = reader.folder / "postgresql-data" / "simulated-mfg-root-ca.postgresql.key"
        assert private.stat().st_mode & 0o777 == 0o600
    assert cpu_seconds() - before < MOST_CPU_SECONDS


def is_ready(url: str) -> bool:
    """Return whether a server answers that it is ready."""
    try:
        return httpx2.get(f"{url}/health/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
