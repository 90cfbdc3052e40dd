"""Count the requests by route, method and status, and measure their latencies.

`web.pipeline` and `web.transport.protocol` report to `RequestMetrics`; `web.api.prometheus` and the
dashboard read it. All labels come from fixed lists, so that a sender cannot fill the memory with
paths and methods of its own.
"""

from time import monotonic, perf_counter_ns

from birthmark_sma.runtime import metrics
from birthmark_sma.runtime.background_output import count_left_out
from birthmark_sma.runtime.percentiles import Snapshots, quantile
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.web.logs.request_log import RequestLog
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.routes import ROUTES, UNKNOWN, VALIDATE, VALIDATE_LEGACY, VALIDATE_PUBLISHED

OTHER = "other"
NO_ANSWER = "none"
"""The label in place of a status if the caller left before the response."""

# Other methods and statuses are counted as OTHER.
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_STATUSES = (
    *(200, 204, 206, 302, 303, 304, 307, 400, 401, 403, 404, 405, 408, 409, 410),
    *(412, 413, 414, 415, 416, 421, 422, 429, 431, 500, 501, 503, 504, 505),
)
_MILLISECOND = 1_000_000
# Upper bounds of the latency histograms.
_BOUNDS = tuple(
    int(each * _MILLISECOND)
    for each in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
)
_OF_ONE_TOKEN = [route.path for route in (VALIDATE, VALIDATE_PUBLISHED, VALIDATE_LEGACY)]
_SHARES = (0.5, 0.95, 0.99)
LATELY_SECONDS = 300.0
"""The period, in seconds, that `RequestMetrics.lately` covers."""
REFUSALS = ("unauthenticated", "insufficient_scope", "misdirected")

# The layout of the shared memory. Every process imports this module and allocates the slots in the
# same order, so the order must not depend on settings.
LAYOUT = SlotAllocator()
_ROUTES = sorted({*ROUTES, UNKNOWN.path})
_NAMES = {status: str(status) for status in _STATUSES} | {0: NO_ANSWER}
REQUESTS = Counter(
    LAYOUT,
    metrics.HTTP_REQUESTS,
    [
        (route, method, status)
        for route in _ROUTES
        for method in (*_METHODS, OTHER)
        for status in (*_NAMES.values(), OTHER)
    ],
)
LATENCIES = {
    route: Histogram(LAYOUT, metrics.HTTP_REQUEST_DURATION, _BOUNDS, (route,)) for route in _ROUTES
}
LOG_LINES_LEFT_OUT = Counter(LAYOUT, metrics.LOG_LINES_LEFT_OUT)
ACCESS_REFUSALS = Counter(LAYOUT, metrics.ACCESS_REFUSALS, [(each,) for each in REFUSALS])


def create_shared_counters(processes: int) -> SharedCounters:
    """Return new shared memory for the request metrics of so many processes."""
    return SharedCounters(processes, LAYOUT.size)


class RequestMetrics:
    """The request metrics of one process. Owned by its event loop."""

    def __init__(
        self, shared_counters: SharedCounters | None = None, log: RequestLog | None = None
    ) -> None:
        self._log = log
        self.shared_counters = shared_counters or create_shared_counters(1)
        # Only this process writes to its row, so adding needs no lock.
        self._sheet = self.shared_counters.take_one()
        self._looks = Snapshots(LATELY_SECONDS)
        self._left_out = 0

    def look(self) -> None:
        """Take a snapshot of the latencies of all processes.

        `web.api.prometheus.copy_figures` calls this every second.
        """
        shared_counters = self.shared_counters.all()
        counted = (LATENCIES[route].total(shared_counters)[0] for route in _OF_ONE_TOKEN)
        self._looks.take(monotonic(), [sum(each) for each in zip(*counted, strict=True)])

    def copy_figures(self) -> None:
        """Add the number of log lines that this process has left out to the shared memory."""
        left_out = count_left_out()
        # Only the difference, as the row may hold the counts of a process that died.
        LOG_LINES_LEFT_OUT.add(self._sheet, (), left_out - self._left_out)
        self._left_out = left_out

    def lately(self) -> list[tuple[float, float]]:
        """Return latency percentiles of single camera tokens, as (share, milliseconds) pairs.

        They cover all processes and the last LATELY_SECONDS. Without such a request the list is
        empty.
        """
        counts = self._looks.since_the_first()
        if not any(counts):
            return []
        told = ((share, quantile(_BOUNDS, counts, share)) for share in _SHARES)
        return [(share, at / _MILLISECOND) for share, at in told if at is not None]

    def answered(self, context: RequestContext) -> None:
        """Count and log a response, and end its trace. Status 0 means that there was none."""
        took = perf_counter_ns() - context.began
        route, method, status = context.route.path, context.method, context.status
        name = _NAMES.get(status, OTHER)
        REQUESTS.add(self._sheet, (route, method if method in _METHODS else OTHER, name))
        LATENCIES[route].observe(self._sheet, took)
        if self._log is not None:
            self._log.note(context, took)
        if context.trace is not None:
            context.trace.end(status)

    def refused(self, status: int) -> None:
        """Count a refusal of something that was not yet a whole request, so has no route."""
        REQUESTS.add(self._sheet, (UNKNOWN.path, OTHER, _NAMES.get(status, OTHER)))

    def turned_away(self, reason: str) -> None:
        """Count a request that the Authenticator refused. `reason` is one of REFUSALS."""
        ACCESS_REFUSALS.add(self._sheet, (reason,))
