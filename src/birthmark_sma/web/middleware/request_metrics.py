"""Count every request: by route, method and status, and how long its answer took.

Labels come from fixed lists, so that nobody fills the memory with paths and methods of his own.
"""

from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark_sma.runtime.background_output import count_left_out
from birthmark_sma.runtime.percentiles import Snapshots, quantile
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.web.logs.request_ids import bind_request
from birthmark_sma.web.logs.request_log import RequestLog
from birthmark_sma.web.middleware.authentication import RULES, UNKNOWN, route_name

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import RequestTrace, Tracing

OTHER = "other"
NO_ANSWER = "none"
"""The status of a request whose sender left before its answer."""

BEGAN = "began"
"""Where in the scope of a request stands when it was whole, or its head there: nanoseconds."""

TRACE = "trace"
"""Where in it stands its trace, if traces are made."""

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_STATUSES = (
    *(200, 204, 206, 302, 303, 304, 307, 400, 401, 403, 404, 405, 408, 409, 410),
    *(412, 413, 414, 415, 416, 421, 422, 429, 431, 500, 501, 503, 504, 505),
)
_MILLISECOND = 1_000_000
_BOUNDS = tuple(
    int(each * _MILLISECOND)
    for each in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
)
_OF_ONE_TOKEN = [
    path for path in ("/api/v1/validate/nuc", "/validate", "/validate-legacy") if path in RULES
]
_SHARES = (0.5, 0.95, 0.99)
LATELY_SECONDS = 300.0
"""How far back `RequestMetrics.lately` goes."""
REFUSALS = ("unauthenticated", "insufficient_scope", "misdirected")

_layout = SlotAllocator()
_ROUTES = (*RULES, UNKNOWN)
_NAMES = {status: str(status) for status in _STATUSES} | {0: NO_ANSWER}
REQUESTS = Counter(
    _layout,
    [
        (route, method, status)
        for route in _ROUTES
        for method in (*_METHODS, OTHER)
        for status in (*_NAMES.values(), OTHER)
    ],
)
LATENCIES = {route: Histogram(_layout, _BOUNDS) for route in _ROUTES}
_OF_POSTS = {path: (REQUESTS.place[path, "POST", "200"], LATENCIES[path]) for path in RULES}
LOG_LINES_LEFT_OUT = Counter(_layout, [()])
ACCESS_REFUSALS = Counter(_layout, [(each,) for each in REFUSALS])


def new_sheets(processes: int) -> SharedCounters:
    """Make the shared memory for so many processes of a server."""
    return SharedCounters(processes, _layout.size)


class RequestMetrics:
    """What one process has answered; owned by its event loop."""

    def __init__(self, sheets: SharedCounters | None = None, log: RequestLog | None = None) -> None:
        self._log = log
        self.sheets = sheets or new_sheets(1)
        self._sheet = self.sheets.take_one()
        self._looks = Snapshots(LATELY_SECONDS)
        self._left_out = 0

    def look(self) -> None:
        """Look at how long every process took until now; the server's loop does so every second."""
        sheets = self.sheets.all()
        counted = (LATENCIES[route].total(sheets)[0] for route in _OF_ONE_TOKEN)
        self._looks.take(monotonic(), [sum(each) for each in zip(*counted, strict=True)])

    def copy_figures(self) -> None:
        """Copy to where all processes see it how many lines of the log were left out."""
        left_out = count_left_out()
        LOG_LINES_LEFT_OUT.add(self._sheet, (), left_out - self._left_out)
        self._left_out = left_out

    def lately(self) -> list[tuple[float, float]]:
        """Return shares of the requests with one camera token, and within how many milliseconds
        they were answered lately, by any process; nothing where there was no such request.
        """
        counts = self._looks.since_the_first()
        if not any(counts):
            return []
        told = ((share, quantile(_BOUNDS, counts, share)) for share in _SHARES)
        return [(share, at / _MILLISECOND) for share, at in told if at is not None]

    def begins(self, scope: Scope) -> None:
        """Note when a request began, unless that was done."""
        scope.setdefault(BEGAN, perf_counter_ns())

    def answered(self, scope: Scope, status: int) -> None:
        """Note an answer; status 0 where there was none."""
        took = perf_counter_ns() - scope[BEGAN]
        route = route_name(scope)
        method, name = scope["method"], _NAMES.get(status, OTHER)
        REQUESTS.add(self._sheet, (route, method if method in _METHODS else OTHER, name))
        LATENCIES[route].observe(self._sheet, took)
        if self._log is not None:
            self._log.note(scope, status, took)

    def answered_directly(self, scope: Scope) -> None:
        """Note an answer of status 200 to a POST; each lookup less is felt here."""
        took = perf_counter_ns() - scope[BEGAN]
        place, histogram = _OF_POSTS[route_name(scope)]
        self._sheet[place] += 1
        histogram.observe(self._sheet, took)
        if self._log is not None:
            self._log.note(scope, 200, took)

    def refused(self, status: int) -> None:
        """Note that something was turned away before it was a whole request."""
        REQUESTS.add(self._sheet, (UNKNOWN, OTHER, _NAMES.get(status, OTHER)))

    def turned_away(self, reason: str) -> None:
        """Note a request that the door did not let in: one of REFUSALS."""
        ACCESS_REFUSALS.add(self._sheet, (reason,))


class TracedTraffic(RequestMetrics):
    """Makes traces as well. Without them there is not even a question whether to."""

    def __init__(
        self, sheets: SharedCounters | None, log: RequestLog | None, tracing: "Tracing"
    ) -> None:
        super().__init__(sheets, log)
        self._tracing = tracing

    def begins(self, scope: Scope) -> None:
        """Begin its trace too."""
        super().begins(scope)
        self._tracing.begin(scope)

    def answered(self, scope: Scope, status: int) -> None:
        """And end it."""
        super().answered(scope, status)
        trace: RequestTrace | None = scope.get(TRACE)
        if trace is not None:
            trace.end(status)

    def answered_directly(self, scope: Scope) -> None:
        """And end it."""
        super().answered_directly(scope)
        trace: RequestTrace = scope[TRACE]
        trace.end(200)


class MetricsMiddleware:
    """Notes every answer of an application, whatever gives it."""

    def __init__(self, app: ASGIApp, traffic: RequestMetrics) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and look at the status that comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._traffic.begins(scope)
        bind_request(scope)
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._traffic.answered(scope, status)
