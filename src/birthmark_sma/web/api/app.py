"""The web application: routes, errors and documentation around an open authority."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from birthmark_sma import __version__
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.sandbox.guards import check_kind
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters
from birthmark_sma.runtime.worker_pool import WorkerPool
from birthmark_sma.web import problems
from birthmark_sma.web.api import crl, health, openapi, prometheus, provision, validate
from birthmark_sma.web.api.crl import Crls
from birthmark_sma.web.dashboard import routes
from birthmark_sma.web.dashboard.session_middleware import HOME, SessionMiddleware
from birthmark_sma.web.logs import request_ids
from birthmark_sma.web.logs.request_log import RequestLog
from birthmark_sma.web.middleware import rate_limit, security_headers
from birthmark_sma.web.middleware.authentication import Authenticator
from birthmark_sma.web.middleware.cancellation import Cancellable
from birthmark_sma.web.middleware.request_metrics import (
    MetricsMiddleware,
    RequestMetrics,
    TracedTraffic,
)
from birthmark_sma.web.middleware.response_deadline import Deadlines
from birthmark_sma.web.transport.fast_path import DirectEndpoint

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

_THREADS = 2
"""How many threads ask the database for what takes long (figures, pages, exports), how many for
what is quick (sessions, revocation lists), and how many for probes. Who reads figures without end
must not keep others out, nor make a healthy server look dead."""
_MOST_WAITING = 100
"""How many questions may wait for the threads of a kind; more are refused with 503."""

_ROUTERS = (
    validate.router,
    provision.router,
    health.router,
    crl.router,
    prometheus.router,
)
_TAGS = [
    {"name": "validate", "description": "For aggregation servers."},
    {"name": "provision", "description": "For cameras, once in their life."},
    {"name": "operate", "description": "For operators, probes and verifiers."},
]


class AnswerHead:
    """Answers HEAD as GET, of which the server then leaves the body out (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; the server keeps the scope that says HEAD."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Application:
    """The whole application: what browsers need to know around what is answered.

    A request of a page of another origin goes the ordinary way, as its answer says who may read it.
    """

    of_sandbox = False
    sent_by_pages: tuple[str, ...] = (
        "Authorization",
        "Content-Type",
        provision.IDEMPOTENCY_HEADER,
        request_ids.HEADER,
    )
    """Header fields that pages of other origins may send, where these may ask at all,"""
    read_by_pages: tuple[str, ...] = (*rate_limit.FIELDS, "Retry-After", request_ids.HEADER)
    """and those of answers that they may read."""

    def __init__(
        self,
        app: FastAPI,
        origins: Sequence[str],
        traffic: RequestMetrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.routes = app.routes
        self.traffic = traffic
        self._short_way = validate.ValidationMiddleware(app, traffic, tracing)
        gate = self._inside(SessionMiddleware(self._short_way, app), app)
        self._for_pages = bool(origins)
        answers = security_headers.ResponseHeaders(
            CORSMiddleware(
                gate,
                allow_origins=origins,
                allow_methods=("GET", "POST"),
                allow_headers=self.sent_by_pages,
                expose_headers=self.read_by_pages,
            )
            if origins
            else gate
        )
        self._app = MetricsMiddleware(Cancellable(answers), traffic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await self._app(scope, receive, send)

    def _inside(self, gate: ASGIApp, app: FastAPI) -> ASGIApp:  # noqa: ARG002  for subclasses
        """Return what stands between what completes answers and what gives them."""
        return gate

    def direct_endpoint(self, scope: Scope) -> DirectEndpoint | None:
        """Return what answers a request without all this, if anything does."""
        if self._for_pages and any(name == b"origin" for name, _ in scope["headers"]):
            return None
        return self._short_way.direct_endpoint(scope)


async def _front_door(request: Request) -> RedirectResponse:
    """Show people the dashboard, and programs the documentation."""
    for_a_person = "text/html" in request.headers.get("accept", "")
    return RedirectResponse(HOME if for_a_person else "/docs")


@contextmanager
def _pool(name: str, threads: int) -> Iterator[WorkerPool]:
    pool = WorkerPool(threads, name, most_waiting=_MOST_WAITING)
    try:
        yield pool
    finally:
        pool.shutdown()


def create_app(
    open_authority: Callable[[], Authority],
    origins: Sequence[str] = (),
    traffic_sheets: SharedCounters | None = None,
    log: RequestLog | None = None,
    tracing: "Tracing | None" = None,
    *,
    front: type[Application] = Application,
) -> Application:
    """Build the application. The authority is opened when it starts, and drained when it stops.

    Pages of these origins may call it from a browser. Requests are counted on sheets that processes
    share, or else for this one alone; and told to a log, and to traces, if there are any. `front`
    is another for a sandbox alone: an authority is served as what it was founded as, or not at all.
    """
    traffic = (
        RequestMetrics(traffic_sheets, log)
        if tracing is None
        else TracedTraffic(traffic_sheets, log, tracing)
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        request_ids.mark_event_loop_thread()
        authority = await asyncio.to_thread(open_authority)
        check_kind(authority.sandbox, sandbox=front.of_sandbox)
        authority.start()
        if tracing is not None:
            authority.validator.watch(tracing.note_batch)
        with (
            _pool("slow", _THREADS) as slow,
            _pool("asker", _THREADS) as askers,
            _pool("prober", _THREADS) as probers,
            _pool("scraper", 1) as scraper,
        ):
            app.state.authority = authority
            app.state.traffic = traffic
            app.state.scrapes = prometheus.make_metrics_cache(authority, traffic, scraper)
            app.state.authenticator = Authenticator(authority.settings, authority.key_cache)
            app.state.slow = slow
            app.state.askers = askers
            app.state.probers = probers
            app.state.deadlines = Deadlines()
            await authority.rate_limits.start()
            watching = asyncio.create_task(app.state.deadlines.watch())
            copying = asyncio.create_task(prometheus.copy_figures(authority, traffic))
            app.state.crls = Crls(authority.served_crls, askers)
            app.state.exporting = asyncio.Lock()
            # What was made until now stays: the collector need not look at it again and again while
            # callers wait.
            gc.collect()
            gc.freeze()
            try:
                yield
            finally:
                watching.cancel()
                copying.cancel()
                await authority.rate_limits.close()
                await asyncio.to_thread(authority.close)
                if tracing is not None:
                    await asyncio.to_thread(tracing.close)

    # The documentation pages come with their scripts: no browser asks another host for them.
    app: FastAPI = FastAPIOffline(
        title="Birthmark Simulated Manufacturer Authority",
        version=__version__,
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(AnswerHead)
    problems.install(app)
    openapi.install(app, _ROUTERS)
    for router in _ROUTERS:
        app.include_router(router)

    routes.install(app)

    # A route of Starlette: FastAPI would parse all of a stranger's query and cookies first.
    app.add_route("/", _front_door, include_in_schema=False)

    return front(app, origins, traffic, tracing)
