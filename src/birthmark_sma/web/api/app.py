"""Build the ASGI application: endpoints, documentation, and the state that they share.

`web.server` calls `create_app` in each process that serves. The application opens the authority
when it starts and closes it when it stops. `web.pipeline` has the steps of a request.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from starlette.responses import RedirectResponse

from birthmark_sma import __version__
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ocsp.responder import OcspResponder
from birthmark_sma.authority.ocsp.store import find_certificates
from birthmark_sma.authority.sandbox.guards import check_kind
from birthmark_sma.authority.validation.audit_counters import HourCounts
from birthmark_sma.runtime.shared_memory_metrics import SharedCounters
from birthmark_sma.web.api import (
    docs_pages,
    health,
    openapi,
    prometheus,
    provision,
    validate,
    validate_batch,
    validate_published,
)
from birthmark_sma.web.api.administration import (
    access_keys,
    device_acts,
    devices,
    flags,
    inventory,
    trails,
)
from birthmark_sma.web.api.pki import files, ocsp
from birthmark_sma.web.api.renewal import endpoints as renewal
from birthmark_sma.web.conditions.watch import ConditionWatch
from birthmark_sma.web.dashboard import routes as dashboard_routes
from birthmark_sma.web.dashboard import static_files
from birthmark_sma.web.dashboard.health.examination import Examination
from birthmark_sma.web.middleware.authentication import Authenticator
from birthmark_sma.web.middleware.request_metrics import RequestLog, RequestMetrics
from birthmark_sma.web.middleware.timeouts import Deadlines, GatheredQuery, WorkerPool
from birthmark_sma.web.pipeline import Application
from birthmark_sma.web.routes import DASHBOARD, DASHBOARD_FILES
from birthmark_sma.web.server_state import ApiRequest, NewestCrls, ServerState

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

_THREADS = 2
"""The number of threads in each of four pools for database queries: slow ones (statistics, pages,
exports), administrative acts, quick ones (sessions, CRLs, OCSP) and probes. With one pool, a caller
that requests statistics all the time would block the others and make a healthy server fail its
probes."""
_MOST_WAITING = 100
"""The most queries that may wait in a pool. Further ones are refused with 503."""
_YOUNG_OBJECTS = 20_000
"""New objects before a garbage collection. With Python's 700, each of 128 requests under way is
looked at several times: a tenth of the time of a camera token."""
_OCSP_SECONDS = 2.0  # the timeout of a query for certificates: a later result would be too old

_front = APIRouter()
_API = (
    validate.router,
    validate_batch.router,
    validate_published.router,
    provision.router,
    renewal.router,
    devices.router,
    device_acts.router,
    access_keys.router,
    flags.router,
    trails.router,
    inventory.router,
    health.router,
    files.router,
    ocsp.router,
    prometheus.router,
)
_ROUTERS = (*_API, *dashboard_routes.ROUTERS, _front)
_TAGS = [
    {"name": "validate", "description": "For aggregation servers."},
    {"name": "provision", "description": "For cameras, once in their life."},
    {"name": "administer", "description": "For people and programs that operate the authority."},
    {"name": "operate", "description": "For operators, probes and verifiers."},
]


@_front.get("/", include_in_schema=False)
async def redirect_to_start(request: ApiRequest) -> RedirectResponse:
    """Redirect browsers to the dashboard and programs to the documentation.

    A request that accepts text/html counts as one of a browser.
    """
    for_a_person = "text/html" in request.headers.get("accept", "")
    return RedirectResponse(DASHBOARD.path if for_a_person else "/docs")


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
    metrics = RequestMetrics(traffic_sheets, log)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # In a thread, as opening blocks: it reads the database and unwraps the key tables.
        authority = await asyncio.to_thread(open_authority)
        check_kind(authority.sandbox, sandbox=front.of_sandbox)
        async with _serving(authority, metrics, tracing) as state:
            application.state = state
            yield

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
    docs_pages.install(app)
    openapi.install(app, _API)
    for router in _ROUTERS:
        app.include_router(router)
    app.mount(DASHBOARD_FILES.path, static_files.serve)
    application = front(app, _ROUTERS, origins, metrics, tracing)
    return application


@asynccontextmanager
async def _serving(
    authority: Authority, metrics: RequestMetrics, tracing: "Tracing | None"
) -> AsyncIterator[ServerState]:
    """Start everything that endpoints need, and stop it at the end of the block."""
    authority.start()
    if tracing is not None:
        authority.validator.watch(tracing.note_batch)
    with (
        _pool("slow", _THREADS) as slow,
        _pool("act", _THREADS) as acts,
        _pool("asker", _THREADS) as quick,
        _pool("prober", _THREADS) as probes,
        _pool("scraper", 1) as scraper,
        _pool("examiner", 1) as examiner,
    ):
        metrics_text = prometheus.make_metrics_cache(authority, metrics, scraper)
        state = ServerState(
            authority=authority,
            authenticator=Authenticator(authority.settings, authority.key_cache),
            metrics=metrics,
            metrics_text=metrics_text,
            slow=slow,
            acts=acts,
            quick=quick,
            probes=probes,
            deadlines=Deadlines(),
            crls=NewestCrls(authority.served_crls, quick),
            ocsp=_ocsp_responder(authority, quick),
            hours=HourCounts(),
            conditions=ConditionWatch(metrics_text.text_for_server, quick),
            examination=Examination(authority.settings, examiner),
            exporting=asyncio.Lock(),
        )
        await authority.rate_limits.start()
        watching = asyncio.create_task(state.deadlines.watch())
        copying = asyncio.create_task(prometheus.copy_figures(authority, metrics))
        evaluating = asyncio.create_task(state.conditions.watch())
        # All objects that exist now live until the end. Frozen, they are left out of garbage
        # collections, during which callers would wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)
        try:
            yield state
        finally:
            watching.cancel()
            copying.cancel()
            evaluating.cancel()
            # The order matters: rate limits belong to this event loop. Closing the authority
            # commits the last batches, in a thread because that blocks. Tracing closes last, as it
            # gets a span for each of those batches.
            await authority.rate_limits.close()
            await asyncio.to_thread(authority.close)
            if tracing is not None:
                await asyncio.to_thread(tracing.close)


@contextmanager
def _pool(name: str, threads: int) -> Iterator[WorkerPool]:
    pool = WorkerPool(threads, name, most_waiting=_MOST_WAITING)
    try:
        yield pool
    finally:
        pool.shutdown()


def _ocsp_responder(authority: Authority, threads: WorkerPool) -> OcspResponder:
    look_up = GatheredQuery(threads, partial(find_certificates, authority.database), _OCSP_SECONDS)
    return OcspResponder(authority.ocsp_delegation, look_up.read, authority.figures)
