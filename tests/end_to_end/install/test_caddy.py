"""Behind Caddy with this project's Caddyfile: TLS, a camera in Java, a restart of the server."""

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.support.cameras.camera import VALIDATE
from tests.support.deployment.platforms import ROOT
from tests.support.http.ports import free_port
from tests.support.programs.commands import sma
from tests.support.programs.running import wait_until
from tests.support.programs.server import Server, server_environ

SECONDS = 120
JAVA = ROOT / "examples" / "android" / "org" / "birthmark" / "camera"


@contextmanager
def caddy(folder: Path, upstream: int) -> Iterator[tuple[str, Path]]:
    """Run Caddy for localhost. Yield its URL and its CA. Only ports and paths are the test's."""
    port, plain = free_port(), free_port()
    text = (ROOT / "deploy" / "caddy" / "Caddyfile").read_text(encoding="utf-8")
    text = text.replace("server:8000", f"127.0.0.1:{upstream}")
    text = text.replace("root * /etc/caddy", f"root * {ROOT / 'deploy' / 'caddy'}")
    options = f"{{\n\tadmin off\n\tskip_install_trust\n\thttp_port {plain}\n\thttps_port {port}\n"
    file = folder / "Caddyfile"
    file.write_text(text.replace("{\n", options, 1), encoding="utf-8")
    authority = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "caddy", "run", "--config", file],
            env=os.environ | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(authority.exists, 60)
        yield f"https://localhost:{port}", authority
    finally:
        process.terminate()
        process.wait(30)


def client_of(authority: Path) -> httpx2.Client:
    """Return a client that trusts the CA of Caddy, and nothing else."""
    context = ssl.create_default_context(cafile=str(authority))
    return httpx2.Client(verify=context, trust_env=False, timeout=60)


def capture_with_java(url: str, authority: Path, folder: Path) -> str:
    """Provision the camera on a desk over TLS, and return the bundle of a picture."""
    sources = [JAVA / name for name in ("CameraCore.java", "DesktopCamera.java")]
    store, picture = folder / "trust.p12", folder / "picture.jpg"
    picture.write_bytes(b"a picture")
    run("javac", "-d", folder / "classes", *sources)
    run("keytool", "-importcert", "-noprompt", "-file", authority, "-keystore", store)
    trust = (
        f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStorePassword=changeit",
    )
    main = "org.birthmark.camera.DesktopCamera"
    return run("java", *trust, "-cp", folder / "classes", main, url, "camera-java", picture)


def run(program: str, *arguments: object) -> str:
    """Run a program of the JDK, and return what it printed."""
    password = ["-storepass", "changeit"] if program == "keytool" else []
    done = subprocess.run(
        [program, *map(str, arguments), *password],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_behind_caddy(tmp_path: Path) -> None:
    """A camera in Java provisions over TLS, and a token waits while the server is away."""
    port = free_port()

    def serve() -> Server:
        options = ("--trusted-proxies", "127.0.0.1", "--access", "open", "--port", str(port))
        return Server(tmp_path / "data", *options)

    environ = server_environ(tmp_path / "data") | {"SMA_TABLES": "20"}
    assert sma("init", environ=environ).returncode == 0
    server = serve()
    try:
        with caddy(tmp_path, port) as (url, authority), client_of(authority) as client:
            wait_until(lambda: is_healthy(client, url), 60)
            assert "Contact: " in client.get(f"{url}/.well-known/security.txt").text
            token = json.loads(capture_with_java(url, authority, tmp_path))["camera_token"]
            answer = client.post(f"{url}{VALIDATE}", json=token)
            assert answer.json()["validation_result"] == "PASS"
            # While the server is away, a request waits for it.
            assert server.terminate() == 0
            waiting = threading.Thread(target=lambda: answers.append(submit(url, authority, token)))
            answers: list[str] = []
            waiting.start()
            server = serve()
            waiting.join()
            assert answers == ["PASS"]
    finally:
        server.close()


def submit(url: str, authority: Path, token: Any) -> str:
    """Validate a token through Caddy, and return PASS or FAIL."""
    with client_of(authority) as aggregator:
        answer = aggregator.post(f"{url}{VALIDATE}", json=token)
        return str(answer.json()["validation_result"])


def is_healthy(client: httpx2.Client, url: str) -> bool:
    """Return whether the server answers through Caddy."""
    try:
        return client.get(f"{url}/health").status_code == 200
    except httpx2.TransportError:
        return False
