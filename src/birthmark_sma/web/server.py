"""Run the application on a listening socket with uvicorn, in one process or several."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from birthmark_sma.authority import server_metrics
from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.config import LogLevel, Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.runtime.background_output import open_output
from birthmark_sma.runtime.core_dumps import forbid_core_dumps
from birthmark_sma.runtime.cpu_affinity import pin_to_core
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters
from birthmark_sma.web.api.app import Application, create_app
from birthmark_sma.web.logs import setup as log_setup
from birthmark_sma.web.logs.request_log import RequestLog
from birthmark_sma.web.middleware import request_metrics
from birthmark_sma.web.middleware.cancellation import (
    DRAIN_SECONDS,
    SUPERVISOR_SECONDS,
    WORKER_SECONDS,
    end_in_time,
)
from birthmark_sma.web.middleware.security_headers import EVERYWHERE
from birthmark_sma.web.sandbox.application import SandboxApplication
from birthmark_sma.web.sandbox.connection_faults import use_sandbox_protocol
from birthmark_sma.web.transport.client_identity import ClientIdentityProtocol
from birthmark_sma.web.transport.fast_path import DirectHttpProtocol
from birthmark_sma.web.transport.protocol import BoundedConfig
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.tls import (
    block_sighup,
    serving_context,
    tls_files,
    unblock_sighup,
)

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

_HUNG_SECONDS = 30  # a worker is killed then: one on a busy machine is not to be
_START_SECONDS = 60
_STDERR = 2
_SPAWNING = multiprocessing.get_context("spawn")  # as uvicorn starts workers


@dataclass(frozen=True, slots=True)
class WorkerApp:
    """Builds the application anew in each worker process, from settings that travel to it."""

    settings: Settings
    started: "Synchronized[int]"
    """How many workers have been started; shared by all of them."""
    figures: SharedCounters
    traffic: SharedCounters
    """Where all of them count."""

    def __call__(self) -> ASGIApp:
        """Return an application that opens the authority when it starts."""
        forbid_core_dumps()
        log_setup.configure(self.settings)
        if self.settings.one_core:
            with self.started.get_lock():
                self.started.value += 1
                pin_to_core(self.started.value)
        return create_app(
            lambda: open_authority(self.settings, self.figures),
            self.settings.cors_origins,
            self.traffic,
            make_request_log(self.settings),
            make_tracing(self.settings),
        )


class _Config(BoundedConfig):
    """The settings of a process that ends in time. They are loaded once signals are handled."""

    def load(self) -> None:
        super().load()
        end_in_time(WORKER_SECONDS)


class _AnnouncingServer(uvicorn.Server):
    """A server that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


class _Supervisor(Multiprocess):
    """Worker processes, a word when all of them accept connections, and SIGHUP handed on to them.

    SIGHUP waits but for a moment twice a second, so that workers are started with it waiting: one
    that comes too early for a worker is answered once it can be (`tls.serving_context`).
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], announce: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self._announce = announce
        end_in_time(SUPERVISOR_SECONDS, self._kill_all)

    def _kill_all(self) -> None:
        for worker in self.processes:
            worker.process.kill()

    def init_processes(self) -> None:
        super().init_processes()
        self._leave_answers_to_workers()
        if all(process.wait_until_ready(_START_SECONDS) for process in self.processes):
            self._announce()

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        self._leave_answers_to_workers()

    def _leave_answers_to_workers(self) -> None:
        """Close what the workers answer by: a pipe says that a worker has died once it alone had
        that end. Else nobody is replaced, and no signal heard, while its answer is waited for.
        """
        for process in self.processes:
            process.child_conn.close()

    def handle_signals(self) -> None:
        unblock_sighup()
        block_sighup()
        super().handle_signals()

    def handle_hup(self) -> None:
        """Let workers read their certificates again; uvicorn would replace them one by one."""
        if not self.config.is_ssl:
            return
        for worker in self.processes:
            if worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has ended: the next one reads
                    os.kill(worker.pid, signal.SIGHUP)


def run_server(authority: Authority, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until a signal says to stop, then drain: every accepted request is answered.

    `announce` is called once the first connection would be accepted. The authority is closed at the
    end; with several workers each opens its own. SIGHUP reads TLS certificates again, and ends
    nothing: the caller has let it wait since before the first thread (`tls.hold_hangups`).
    """
    settings = authority.settings
    if settings.workers == 1:
        log = make_request_log(settings)
        tracing = make_tracing(settings)
        front = SandboxApplication if authority.sandbox else Application
        app = create_app(
            lambda: authority, settings.cors_origins, log=log, tracing=tracing, front=front
        )
        config = uvicorn_config(app, settings, factory=False)
        if authority.sandbox:
            use_sandbox_protocol(config)
        _AnnouncingServer(config, announce).run(sockets=[listener])
        return
    workers = WorkerApp(
        settings,
        _SPAWNING.Value("i", 0),
        server_metrics.new_sheets(settings.workers),
        request_metrics.new_sheets(settings.workers),
    )
    config = uvicorn_config(workers, settings, factory=True)
    try:
        _Supervisor(config, [listener], announce).run()
    finally:
        authority.close()


def make_request_log(settings: Settings) -> RequestLog | None:
    """Return what writes a line a request, where the settings want that."""
    if settings.log_level not in {LogLevel.DEBUG, LogLevel.INFO}:
        return None
    look = log_setup.log_style(settings)
    return RequestLog(open_output(_STDERR, log_setup.note_left_out(look)), look=look)


def make_tracing(settings: Settings) -> "Tracing | None":
    """Return what makes traces, where the settings want that. Raises ConfigurationError."""
    if settings.traces_url is None:
        return None
    check_tracing(settings)
    from birthmark_sma.web.middleware.tracing import Tracing  # noqa: PLC0415  an extra, and not quick

    return Tracing(settings.traces_url)


def check_tracing(settings: Settings) -> None:
    """Raise ConfigurationError where traces are wanted and OpenTelemetry is not installed."""
    if settings.traces_url is None:
        return
    try:
        importlib.import_module("birthmark_sma.web.middleware.tracing")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"SMA_TRACES_URL wants OpenTelemetry, and {error.name} is not installed. Type:"
            ' pip install "birthmark-sma[server,traces]". Or leave SMA_TRACES_URL out'
        ) from None


def uvicorn_config(
    app: ASGIApp | WorkerApp, settings: Settings, *, factory: bool
) -> uvicorn.Config:
    """Return how uvicorn serves an application here: also what measurements compare with."""
    files = tls_files(settings)
    config = _Config(
        app,
        factory=factory,
        workers=settings.workers,
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        headers=list(EVERYWHERE),
        proxy_headers=False,  # uvicorn would believe any proxy on this machine
        http=ClientIdentityProtocol if files or settings.trusted_proxies else DirectHttpProtocol,
        ssl_context_factory=None if files is None else partial(serving_context, files),
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=_HUNG_SECONDS,
    )
    config.request_seconds = settings.request_timeout
    if settings.trusted_proxies:
        config.trusted_proxies = TrustedProxies(settings.trusted_proxies)
    return config
