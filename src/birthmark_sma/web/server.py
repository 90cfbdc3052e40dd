"""Run the application on a listening socket with uvicorn, in one process or several.

`sma serve` calls `run_server`. With one worker, uvicorn runs in the calling process. With several,
the calling process becomes a supervisor: it spawns the workers, replaces those that die and passes
SIGHUP on to them. This module never makes decisions about requests.
"""

import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import SynchronizedArray
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from birthmark_sma.authority import server_metrics
from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.config import LogLevel, Settings
from birthmark_sma.errors import ConfigurationError, DatabaseUnavailableError
from birthmark_sma.runtime.background_output import open_output
from birthmark_sma.runtime.core_dumps import forbid_core_dumps
from birthmark_sma.runtime.cpu_affinity import pin_to_core
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters, find_free
from birthmark_sma.web.api.app import create_app
from birthmark_sma.web.logs import setup as log_setup
from birthmark_sma.web.middleware import request_metrics
from birthmark_sma.web.middleware.security_headers import EVERYWHERE
from birthmark_sma.web.pipeline import Application
from birthmark_sma.web.sandbox.application import SandboxApplication
from birthmark_sma.web.sandbox.connection_faults import use_sandbox_protocol
from birthmark_sma.web.transport import accepting_loop
from birthmark_sma.web.transport.client_identity import ClientIdentityProtocol
from birthmark_sma.web.transport.protocol import LimitedHttpProtocol
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.shutdown import (
    DRAIN_SECONDS,
    SUPERVISOR_SECONDS,
    WORKER_SECONDS,
    end_in_time,
)
from birthmark_sma.web.transport.tls import (
    block_sighup,
    serving_context,
    tls_files,
    unblock_sighup,
)
from birthmark_sma.web.transport.uvicorn_config import BoundedConfig, check_uvicorn

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

# The supervisor kills a worker that does not answer a health check for this long. A shorter time
# would kill healthy workers on a busy machine.
_HUNG_SECONDS = 30
_START_SECONDS = 60  # the longest wait for each worker to accept connections
_OPEN_AGAIN_SECONDS = 1.0
_MOST_CORES = 1 << 16
_STDERR = 2  # the file descriptor
_LOOP = f"{accepting_loop.__name__}:{accepting_loop.new_event_loop.__name__}"
# uvicorn spawns its workers, so the memory that they share must come from the same context.
_SPAWNING = multiprocessing.get_context("spawn")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerApp:
    """A factory that builds the application in each worker process.

    The supervisor pickles it, with the settings and the shared memory, for every worker it spawns.
    """

    settings: Settings
    places: "SynchronizedArray[int]"
    """The process ids of the workers, in shared memory. Change it under its own lock."""
    first_core: int
    """The core of the worker in the first place. The others have the cores after it."""
    figures: SharedCounters
    """The metrics of the authority, shared by all workers."""
    traffic: SharedCounters
    """The request metrics, shared by all workers."""
    limits: SharedWindows
    """The windows of the rate limits, shared by all workers."""

    def __call__(self) -> ASGIApp:
        """Return an application that opens the authority when it starts."""
        # A spawned process begins without either: exec makes a process dumpable again.
        forbid_core_dumps()
        _stop_with_supervisor()
        log_setup.configure(self.settings)
        if self.settings.one_core:
            pin_to_core(self.first_core + self._take_place())
        return create_app(
            partial(_open_patiently, self),
            self.settings.cors_origins,
            self.traffic,
            make_request_log(self.settings),
            make_tracing(self.settings),
        )

    def _take_place(self) -> int:
        """Return the place of this worker: a free one, or that of a worker that has died.

        A worker that replaces another must get that one's core, not the core of a third one.
        """
        with self.places.get_lock():
            place = find_free(self.places[:]) or 0
            self.places[place] = os.getpid()
        return place


def _open_patiently(app: WorkerApp) -> Authority:
    """Open the authority of a worker once the database answers.

    The supervisor has opened it before. If the worker failed instead, uvicorn would stop the whole
    server, whose other workers go on by themselves when the outage is over. The supervisor passes
    stop signals on, and `end_in_time` ends this wait.
    """
    told = False
    while True:
        try:
            return open_authority(app.settings, app.figures, app.limits)
        except DatabaseUnavailableError as error:
            if not told:
                advice = f": {error.advice}" if error.advice else ""
                _log.warning("a new process waits for the database: %s%s", error, advice)
                told = True
            time.sleep(_OPEN_AGAIN_SECONDS)


def _stop_with_supervisor() -> None:
    """Stop this worker as SIGTERM does, as soon as its supervisor has been killed.

    Otherwise it would go on serving, and keep the port from the server that is started next.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    sentinel = supervisor.sentinel

    def wait() -> None:
        multiprocessing.connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


class _Config(BoundedConfig):
    """uvicorn's settings, for a process that exits at most WORKER_SECONDS after a stop signal."""

    def load(self) -> None:
        super().load()
        # uvicorn calls `load` after it has installed its signal handlers, which `end_in_time`
        # wraps. Earlier, uvicorn would replace the wrappers.
        end_in_time(WORKER_SECONDS)


class _AnnouncingServer(uvicorn.Server):
    """A uvicorn server that calls `announce` once it accepts connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Overridden because uvicorn has no callback after it starts to listen.
        if self.started:
            self._announce()


class _Supervisor(Multiprocess):
    """The supervisor of the worker processes.

    It calls `announce` once all workers accept connections, and passes SIGHUP on to them.

    SIGHUP is blocked except for a moment twice a second (`handle_signals`), so each worker is
    spawned with SIGHUP blocked. A SIGHUP that reaches a worker during its start stays pending until
    `tls.serving_context` unblocks it; unblocked, it would kill the worker.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], announce: Callable[[], None]
    ) -> None:
        super().__init__(config, sockets)
        self._announce = announce
        self._is_announced = False
        self._stopping = False
        # After super().__init__, which installs the signal handlers that this wraps.
        end_in_time(SUPERVISOR_SECONDS, self._kill_all)

    def _kill_all(self) -> None:
        for worker in self.processes:
            worker.process.kill()

    def init_processes(self) -> None:
        super().init_processes()
        # Before the wait: a worker that dies at its start is then noticed at once.
        self._leave_answers_to_workers()
        if all(process.wait_until_ready(_START_SECONDS) for process in self.processes):
            self._is_announced = True
            self._announce()

    def handle_int(self) -> None:
        self._stopping = True
        super().handle_int()

    def handle_term(self) -> None:
        self._stopping = True
        super().handle_term()

    @property
    def failed(self) -> bool:
        """True if the server stopped because a worker could not start."""
        return not self._stopping

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        self._leave_answers_to_workers()  # this call may have replaced workers
        # Workers that began in an outage accept connections later than within _START_SECONDS.
        if not (self._is_announced or self.should_exit.is_set()):
            self._is_announced = all(process.is_ready() for process in self.processes)
            if self._is_announced:
                self._announce()

    def _leave_answers_to_workers(self) -> None:
        """Close the supervisor's copies of the workers' ends of the health-check pipes.

        A health check then fails at once when a worker dies. With a copy open, the supervisor
        would wait for the answer for up to _HUNG_SECONDS, and meanwhile replace no worker and
        handle no signal. `child_conn` is an attribute of uvicorn's Process. Closing it twice is
        harmless.
        """
        for process in self.processes:
            process.child_conn.close()

    def handle_signals(self) -> None:
        # A pending SIGHUP is delivered between these two calls; uvicorn's handler queues it.
        unblock_sighup()
        block_sighup()
        super().handle_signals()

    def handle_hup(self) -> None:
        """Make the workers read their TLS certificates again, by sending them SIGHUP.

        uvicorn's own method would restart the workers one by one. Without TLS nothing happens.
        """
        if not self.config.is_ssl:
            return
        for worker in self.processes:
            if worker.pid is not None:
                # The worker may have exited. Its replacement reads the new files anyway.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGHUP)


def run_server(authority: Authority, listener: socket.socket, announce: Callable[[], None]) -> bool:
    """Serve requests until SIGTERM or SIGINT, and finish the accepted requests.

    Return False if the server stopped because a worker process could not start.

    Requests that are not finished after DRAIN_SECONDS get 503. `announce` is called once the
    server accepts connections. The authority is closed at the end; with several workers each worker
    opens an authority of its own.

    SIGHUP reloads the TLS certificates and does not end the process. For this the caller must have
    called `tls.block_sighup` before it started its first thread.
    """
    settings = authority.settings
    if settings.processes == 1:
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
        return True
    workers = WorkerApp(
        settings,
        _SPAWNING.Array("i", settings.processes),
        # Random: in a container, all process ids and numbers of workers are small. Servers that
        # share a machine must not all use its first cores.
        secrets.randbelow(_MOST_CORES),
        server_metrics.create_shared_counters(settings.processes),
        request_metrics.create_shared_counters(settings.processes),
        SharedWindows(settings.processes),
    )
    config = uvicorn_config(workers, settings, factory=True)
    supervisor = _Supervisor(config, [listener], announce)
    try:
        supervisor.run()
    finally:
        authority.close()
    return not supervisor.failed


def make_request_log(settings: Settings) -> request_metrics.RequestLog | None:
    """Return the log of requests (one line each), or None above log level INFO."""
    if settings.log_level not in {LogLevel.DEBUG, LogLevel.INFO}:
        return None
    look = log_setup.log_style(settings)
    output = open_output(_STDERR, log_setup.note_left_out(look))
    return request_metrics.RequestLog(output, look=look)


def make_tracing(settings: Settings) -> "Tracing | None":
    """Return the tracing of requests, or None without SMA_TRACES_URL.

    Raises ConfigurationError as `check_tracing` does.
    """
    if settings.traces_url is None:
        return None
    check_tracing(settings)
    # An optional extra, and slow to import.
    from birthmark_sma.web.middleware.tracing import Tracing  # noqa: PLC0415

    return Tracing(settings.traces_url)


def check_tracing(settings: Settings) -> None:
    """Raise ConfigurationError if SMA_TRACES_URL is set and OpenTelemetry is not installed."""
    if settings.traces_url is None:
        return
    try:
        importlib.import_module("birthmark_sma.web.middleware.tracing")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"SMA_TRACES_URL wants OpenTelemetry, and {error.name} is not installed. Type:"
            " pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http. Or leave"
            " SMA_TRACES_URL out"
        ) from None


def uvicorn_config(
    app: ASGIApp | WorkerApp, settings: Settings, *, factory: bool
) -> uvicorn.Config:
    """Return the uvicorn settings of this server. The benchmarks use the same ones.

    `factory` is true if `app` is a WorkerApp, which uvicorn calls in each worker. Raises
    ConfigurationError if the TLS settings are incomplete or contradict each other, or if uvicorn
    lacks a method that is overridden.
    """
    check_uvicorn()
    files = tls_files(settings)
    config = _Config(
        app,
        factory=factory,
        workers=settings.processes,
        loop=_LOOP,
        lifespan="on",
        access_log=False,  # `RequestLog` and `web.logs.setup` write the log instead
        log_config=None,
        log_level="warning",
        server_header=False,
        headers=list(EVERYWHERE),
        proxy_headers=False,  # uvicorn would believe any proxy on this machine
        # A server with neither TLS nor trusted proxies does not pay for client identities.
        http=ClientIdentityProtocol if files or settings.trusted_proxies else LimitedHttpProtocol,
        ssl_context_factory=None if files is None else partial(serving_context, files),
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=_HUNG_SECONDS,
    )
    config.request_seconds = settings.request_timeout
    if settings.trusted_proxies:
        config.trusted_proxies = TrustedProxies(settings.trusted_proxies)
    return config
