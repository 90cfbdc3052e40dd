"""Serve an ASGI application in its own process: `python -m bench.serving bench.noop bounded`.

`bounded` is the HTTP server exactly as `sma serve` runs it. `plain` is uvicorn with its defaults.
The process prints its URL as the first line.
"""

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal, Self

import uvicorn

from birthmark_sma.config import Settings
from birthmark_sma.web.server import uvicorn_config

_BACKLOG = 2048  # as in `sma serve`, so that the sides differ only in the application
_STOP_SECONDS = 30


class Serving:
    """A running application, as a context manager like tests.support.programs.server.Server.

    Raises RuntimeError if the application does not start.
    """

    def __init__(
        self, module: str, kind: Literal["bounded", "plain"], environ: Mapping[str, str] | None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.serving", module, kind],
            env=dict(os.environ if environ is None else environ),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"{module} did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _serve(module: str, kind: str) -> None:
    app = importlib.import_module(module).app
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        if kind == "bounded":
            config = uvicorn_config(app, Settings(), factory=False)
        else:
            config = uvicorn.Config(app, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve(*sys.argv[1:])
