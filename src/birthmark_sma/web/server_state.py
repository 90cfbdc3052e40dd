"""The state that the endpoints of one process share, and the request as endpoints get it.

`web.api.app` makes a ServerState when the application starts; `web.pipeline` makes an ApiRequest
for each request. Endpoints read both and change neither.
"""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from starlette.requests import Request

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.crl_store import ServedCrl
from birthmark_sma.authority.ocsp.responder import OcspResponder
from birthmark_sma.authority.operations.statistics import Totals
from birthmark_sma.web.middleware.authentication import Authenticator
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.timeouts import Deadlines, MetricsCache, SharedQuery
from birthmark_sma.web.request_context import RequestContext


@dataclass(frozen=True, slots=True)
class ServerState:
    """The authority of a process, and what its endpoints need to call it."""

    authority: Authority
    authenticator: Authenticator
    metrics: RequestMetrics
    metrics_text: MetricsCache[Totals]
    slow: Executor
    """Threads for slow queries: statistics, pages, exports."""
    quick: Executor
    """Threads for quick queries: sessions, revocation lists and OCSP."""
    probes: Executor
    """Threads for the health endpoints, so that slow queries never delay them."""
    deadlines: Deadlines
    intermediate_crl: SharedQuery[ServedCrl | None]
    root_crl: SharedQuery[ServedCrl | None]
    ocsp: OcspResponder
    exporting: asyncio.Lock
    """Held while a piece of an export is read."""


class ApiRequest(Request):
    """A request to an endpoint. `web.pipeline` sets its context and the state of the server."""

    context: RequestContext
    server: ServerState
