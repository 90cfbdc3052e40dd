"""The HTTP server of `sma serve` with an application that returns the client's identity.

`python -m tests.support.http.echo_scope` reads its settings from the environment and prints its
port as the first line.
"""

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import uvicorn
from starlette.types import Receive, Scope, Send

from birthmark_sma.config import load_settings
from birthmark_sma.web.server import uvicorn_config
from birthmark_sma.web.transport.tls import block_sighup


class Echo(NamedTuple):
    """The port and the process id of the server."""

    port: int
    pid: int


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Return client, scheme and TLS extension of the ASGI scope as JSON."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    tls = scope.get("extensions", {}).get("tls")
    if tls is not None and tls["client_cert_der"] is not None:
        tls = tls | {"client_cert_der": base64.b64encode(tls["client_cert_der"]).decode()}
    told = json.dumps({"client": scope["client"], "scheme": scope["scheme"], "tls": tls}).encode()
    headers = [(b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


@contextmanager
def echoing(**environ: str) -> Iterator[Echo]:
    """Run the server with these environment variables until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.http.echo_scope"],
        env=_plain(os.environ) | environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Echo(int(process.stdout.readline()), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("SMA_")}


def _serve() -> None:
    block_sighup()
    config = uvicorn_config(app, load_settings({}, os.environ), factory=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201  for the one who started it
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve()
