"""The state that the endpoints of one process share, and the request as endpoints get it.

`web.api.app` makes a ServerState when the application starts; `web.pipeline` makes an ApiRequest
for each request. Endpoints read both and change neither.
"""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.crl_store import ServedCrl, ServedCrls
from birthmark_sma.authority.ocsp.responder import OcspResponder
from birthmark_sma.authority.operations.statistics import Totals
from birthmark_sma.authority.validation.audit_counters import HourCounts
from birthmark_sma.web.conditions.watch import ConditionWatch
from birthmark_sma.web.dashboard.health.examination import Examination
from birthmark_sma.web.middleware.authentication import Authenticator
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.timeouts import Deadlines, MetricsCache, SharedQuery
from birthmark_sma.web.request_context import RequestContext

_CRL_SECONDS = 4.0  # the timeout of a query for a revocation list


@dataclass(frozen=True, slots=True)
class ServerState:
    """The authority of a process, and what its endpoints need to call it."""

    authority: Authority
    authenticator: Authenticator
    metrics: RequestMetrics
    metrics_text: MetricsCache[Totals]
    slow: Executor
    """Threads for slow queries: statistics, pages, exports."""
    acts: Executor
    """Threads for administrative acts, so that no search delays the suspension of a device."""
    quick: Executor
    """Threads for quick queries: sessions, revocation lists and OCSP."""
    probes: Executor
    """Threads for the health endpoints, so that slow queries never delay them."""
    deadlines: Deadlines
    crls: "NewestCrls"
    ocsp: OcspResponder
    hours: HourCounts
    conditions: ConditionWatch
    examination: Examination
    exporting: asyncio.Lock
    """Held while a piece of an export is read."""


class NewestCrls:
    """The queries for the newest list of each CA. Owned by the event loop.

    While the database is away, a query returns the list that this process served last.
    """

    def __init__(self, served: ServedCrls, threads: Executor) -> None:
        self._served = served
        self._threads = threads
        self._queries: dict[str, SharedQuery[ServedCrl | None]] = {}

    def of(self, ca: str) -> SharedQuery[ServedCrl | None]:
        """Return the query for the list of a CA that exists, by its name."""
        if ca not in self._queries:
            self._queries[ca] = SharedQuery(
                self._threads,
                partial(self._served.newest, ca),
                partial(self._served.last_known, ca),
                _CRL_SECONDS,
            )
        return self._queries[ca]


class ApiRequest(Request):
    """A request to an endpoint. `web.pipeline` sets its context and the state of the server."""

    context: RequestContext
    server: ServerState
