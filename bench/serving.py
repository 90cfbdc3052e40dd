"""Serve an ASGI application in its own process: `python -m bench.serving bench.noop bounded`.

`bounded` is the HTTP server exactly as `sma serve` runs it. `plain` is uvicorn with its defaults.
The process prints its URL as JSON, as `sma serve --json` does.
"""

import importlib
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import uvicorn

from birthmark_sma.config import Settings
from birthmark_sma.web.server import uvicorn_config
from tests.support.programs.server import Server

_BACKLOG = 2048  # as in `sma serve`, so that the sides differ only in the application


def serving(
    module: str, kind: Literal["bounded", "plain"], folder: Path, environ: Mapping[str, str]
) -> Server:
    """Start the application `module.app`. The log goes into a file in `folder`."""
    program = (sys.executable, "-m", "bench.serving", module, kind)
    return Server(folder / f"{module}-{kind}", environ=environ, program=program)


def _serve(module: str, kind: str) -> None:
    app = importlib.import_module(module).app
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(json.dumps({"url": url}, indent=1), flush=True)
        if kind == "bounded":
            config = uvicorn_config(app, Settings(), factory=False)
        else:
            config = uvicorn.Config(app, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve(*sys.argv[1:3])  # the arguments behind these are those of `sma serve`
