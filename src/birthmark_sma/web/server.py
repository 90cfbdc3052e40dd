"""Run the application on a listening socket with uvicorn, in one process or several."""

import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.authority.no_core_dumps import forbid_core_dumps
from birthmark_sma.authority.one_core import keep_to_one_core
from birthmark_sma.config import Settings
from birthmark_sma.web.app import create_app
from birthmark_sma.web.direct_answers import DirectHttpProtocol
from birthmark_sma.web.http_protocol import BoundedConfig

_DRAIN_SECONDS = 30
_START_SECONDS = 60
_SPAWNING = multiprocessing.get_context("spawn")  # as uvicorn starts workers


@dataclass(frozen=True, slots=True)
class WorkerApp:
    """Builds the application anew in each worker process, from settings that travel to it."""

    settings: Settings
    started: "Synchronized[int]"
    """How many workers have been started; shared by all of them."""

    def __call__(self) -> ASGIApp:
        """Return an application that opens the authority when it starts."""
        forbid_core_dumps()
        if self.settings.one_core:
            with self.started.get_lock():
                self.started.value += 1
                keep_to_one_core(self.started.value)
        return create_app(lambda: open_authority(self.settings))


class _AnnouncingServer(uvicorn.Server):
    """A server that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


class _AnnouncingSupervisor(Multiprocess):
    """Worker processes, and a word when all of them accept connections."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], announce: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self._announce = announce

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(_START_SECONDS) for process in self.processes):
            self._announce()


def run_server(authority: Authority, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until a signal says to stop, then drain: every accepted request is answered.

    `announce` is called once the first connection would be accepted. The authority is closed at the
    end; with several workers each opens its own.
    """
    settings = authority.settings
    if settings.workers == 1:
        config = uvicorn_config(create_app(lambda: authority), settings, factory=False)
        _AnnouncingServer(config, announce).run(sockets=[listener])
        return
    config = uvicorn_config(WorkerApp(settings, _SPAWNING.Value("i", 0)), settings, factory=True)
    try:
        _AnnouncingSupervisor(config, [listener], announce).run()
    finally:
        authority.close()


def uvicorn_config(
    app: ASGIApp | WorkerApp, settings: Settings, *, factory: bool
) -> uvicorn.Config:
    """Return how uvicorn serves an application here: also what measurements compare with."""
    config = BoundedConfig(
        app,
        factory=factory,
        workers=settings.workers,
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # what a header says of its sender is believed of nobody
        http=DirectHttpProtocol,
        ws="none",
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    config.request_seconds = settings.request_timeout
    return config
