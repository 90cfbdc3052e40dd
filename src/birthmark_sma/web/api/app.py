"""Build the ASGI application: routes, middleware, error handlers and documentation.

`web.server` calls `create_app` in each process that serves. The application opens the authority
when it starts and closes it when it stops. Endpoints belong to the other modules of this folder.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
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
from birthmark_sma.web.api import crl, docs_pages, health, openapi, prometheus, provision, validate
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
"""The number of threads in each of three pools for database queries: slow ones (statistics, pages,
exports), quick ones (sessions, revocation lists) and probes. With one pool, a caller that requests
statistics all the time would block the others and make a healthy server fail its probes."""
_MOST_WAITING = 100
"""The most queries that may wait in a pool. Further ones are refused with 503."""

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
    """Middleware that answers HEAD as GET, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD request on as GET."""
        # In a copy: uvicorn keeps the original scope, whose HEAD makes it leave the body out.
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Application:
    """The ASGI application of a server: FastAPI, and the middleware around it.

    From the outside to the inside: metrics, cancellation, response headers, CORS (only with CORS
    origins), dashboard sessions, validation, FastAPI. Single camera tokens skip all of these
    (`direct_endpoint`), so a check that concerns every request must not be middleware alone (ADR
    0007).
    """

    of_sandbox = False
    sent_by_pages: tuple[str, ...] = (
        "Authorization",
        "Content-Type",
        provision.IDEMPOTENCY_HEADER,
        request_ids.HEADER,
    )
    """Header fields that pages of the CORS origins may send."""
    read_by_pages: tuple[str, ...] = (*rate_limit.FIELDS, "Retry-After", request_ids.HEADER)
    """Header fields of responses that pages of the CORS origins may read."""

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
        # Outside CORS, which answers preflight requests itself: these need the headers too.
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
        # Metrics are outermost, so that they count the responses of all other middleware.
        self._app = MetricsMiddleware(Cancellable(answers), traffic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that does not take the fast path, or run the lifespan."""
        await self._app(scope, receive, send)

    def _inside(self, gate: ASGIApp, app: FastAPI) -> ASGIApp:  # noqa: ARG002  for subclasses
        """Return the application to run inside CORS and response headers.

        Subclasses override this to put middleware around `gate`, the dashboard's middleware.
        """
        return gate

    def direct_endpoint(self, scope: Scope) -> DirectEndpoint | None:
        """Return the endpoint that answers a request on the fast path, or None.

        `web.transport.fast_path` calls this before it makes a task for the request.
        """
        # A response to a page of another origin needs the fields that CORSMiddleware adds.
        if self._for_pages and any(name == b"origin" for name, _ in scope["headers"]):
            return None
        return self._short_way.direct_endpoint(scope)


async def _front_door(request: Request) -> RedirectResponse:
    """Redirect browsers to the dashboard and programs to the documentation.

    A request that accepts text/html counts as one of a browser.
    """
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
    """Build the application.

    `open_authority` is called when the application starts. When it stops, it finishes what is under
    way and closes the authority. `origins` are the CORS origins. `traffic_sheets` is shared memory
    for the request metrics of several processes; without it, this process counts alone. `log` and
    `tracing` may be None. `front` is SandboxApplication for a sandbox: the start fails with
    ConfigurationError if `front` and the kind of the authority differ.
    """
    traffic = (
        RequestMetrics(traffic_sheets, log)
        if tracing is None
        else TracedTraffic(traffic_sheets, log, tracing)
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        request_ids.mark_event_loop_thread()
        # In a thread, as opening blocks: it reads the database and unwraps the key tables.
        authority = await asyncio.to_thread(open_authority)
        check_kind(authority.sandbox, sandbox=front.of_sandbox)
        authority.start()  # after the check: background tasks change data
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
            # All objects that exist now live until the end. Frozen, they are left out of garbage
            # collections, during which callers would wait.
            gc.collect()
            gc.freeze()
            try:
                yield
            finally:
                watching.cancel()
                copying.cancel()
                # The order matters: rate limits belong to this event loop. Closing the authority
                # commits the last batches, in a thread because that blocks. Tracing closes last, as
                # it gets a span for each of those batches.
                await authority.rate_limits.close()
                await asyncio.to_thread(authority.close)
                if tracing is not None:
                    await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Birthmark Simulated Manufacturer Authority",
        version=__version__,
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(AnswerHead)
    docs_pages.install(app)
    problems.install(app)
    openapi.install(app, _ROUTERS)
    for router in _ROUTERS:
        app.include_router(router)

    routes.install(app)

    # A Starlette route, as FastAPI would first parse the whole query and all cookies, of anyone.
    app.add_route("/", _front_door, include_in_schema=False)

    return front(app, origins, traffic, tracing)
