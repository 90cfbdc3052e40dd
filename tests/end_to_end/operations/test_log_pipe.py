"""A log that nobody reads: the server goes on, its probes answer, and SIGTERM ends it."""

import fcntl
import os
import signal
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.conftest import FEW_TABLES
from tests.support.cameras.camera import VALIDATE
from tests.support.http.ports import reserved_port
from tests.support.programs.commands import sma
from tests.support.programs.running import wait_until
from tests.support.programs.server import SMA, server_environ

PIPE_BYTES = 4_096
ANSWER_SECONDS = 5.0
END_SECONDS = 20.0


@contextmanager
def unread_pipe(*, full: bool) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe as small as Linux makes it; full from the start if asked."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    if full:
        os.write(writer, b"x" * PIPE_BYTES)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def answers(client: httpx2.Client) -> bool:
    """Return whether the server listens."""
    try:
        return client.get("/health/live").is_success
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("full", [False, True], ids=["fills up", "full from the start"])
def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, workers: str, full: bool) -> None:
    """Requests and probes are answered, and SIGTERM ends the server in time."""
    environ = server_environ(tmp_path / "data") | {"SMA_LOG_LEVEL": "debug"} | FEW_TABLES
    made = sma("init", environ=environ)
    assert made.returncode == 0, made.stderr
    with (
        reserved_port() as port,
        unread_pipe(full=full) as (_, log),
        unread_pipe(full=full) as (_, output),
    ):
        server = subprocess.Popen(
            [*SMA, "serve", "--json", "--port", str(port), "--workers", workers],
            env=environ,
            stdout=output,
            stderr=log,
        )
        try:
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_SECONDS, trust_env=False
            ) as client:
                wait_until(lambda: answers(client), 60)
                # Warnings, debug lines of the writer, and lines of requests: over 64 KiB of each.
                path = "/" + "long" * 45
                for number in range(400):
                    assert client.get(f"{path}{number}").status_code == 404
                    if number % 4 == 0:
                        token = {
                            "encrypted_nuc_hash": f"{number:096x}",
                            "table_id": 1,
                            "key_index": 1,
                            "nonce": "00" * 12,
                        }
                        assert client.post(VALIDATE, json=token).status_code == 200
                took = []
                for _ in range(5):
                    probe = client.get("/health/live")
                    assert probe.status_code == 200
                    took.append(probe.elapsed.total_seconds())
                assert statistics.median(took) < 1
            server.send_signal(signal.SIGTERM)
            assert server.wait(END_SECONDS) == 0
        finally:
            server.kill()
            server.wait()


def test_a_crash_at_the_start_says_why(tmp_path: Path) -> None:
    """What is printed at the very end is still written."""
    environ = server_environ(tmp_path / "data") | FEW_TABLES
    assert sma("init", environ=environ).returncode == 0
    environ["CA_PASSWORD"] = "another passphrase than its own"
    for workers in ("1", "2"):
        command = [*SMA, "serve", "--port", "0", "--workers", workers]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 3
        assert done.stderr.splitlines()[-1].startswith("sma: "), done.stderr
