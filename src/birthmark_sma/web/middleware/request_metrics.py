"""Record each request: count it by route, method and status, measure its latency, and log it.

`web.pipeline` and `web.transport.protocol` report to `RequestMetrics`; `web.api.prometheus` and the
dashboard read it. `RequestLog` writes a line for each request, as JSON or for a terminal. All
labels come from fixed lists, so that a sender cannot fill the memory with paths and methods of its
own.
"""

import json
import re
import time
from collections import Counter as Tally
from time import monotonic, perf_counter_ns

from birthmark_sma.protocol.verdict import TEXTS
from birthmark_sma.runtime import metrics
from birthmark_sma.runtime.background_output import BackgroundOutput, count_left_out
from birthmark_sma.runtime.percentiles import Snapshots, quantile
from birthmark_sma.runtime.redaction import without_keys
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.web.logs.setup import LogStyle
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

_MOST_PATH_CHARACTERS = 200
# Most paths: they need no JSON escaping and cannot forge a log line.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]*")

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31;1m", 0: "\x1b[33m"}
"""ANSI colour for the first digit of a status: green, cyan, yellow, red. 0: the client left."""

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


class RequestLog:
    """Writes one line for each request to an output. One event loop must add all lines.

    It formats the line itself, because a structlog record costs as much as the validation of a
    camera token. `background_output` writes it in a thread: a request must never wait for the log.
    """

    def __init__(self, output: BackgroundOutput, *, look: LogStyle) -> None:
        self._output = output
        self._look = look
        self._as_json = look is LogStyle.JSON
        # Cache: the time is formatted once a second, not once a line.
        self._second = 0
        self._stamp = ""

    def note(self, context: RequestContext, nanoseconds: int) -> None:
        """Add the line of a request. Status 0 means that the client left before its response."""
        caller, status, who = context.caller, context.status, context.address or "-"
        key = "-" if caller is None or caller.key is None else caller.key.key_id
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            between = "T" if self._as_json else " "
            self._stamp = time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.gmtime(self._second))
        if self._as_json:
            # Only the path needs escaping: ids, keys and addresses contain safe characters only.
            line = (
                f'{{"timestamp":"{self._stamp}.{int(now % 1 * 1000):03}Z","level":"info",'
                f'"event":"request","method":"{context.method}","path":{_path(context.path)},'
                f'"status":{status},"duration_ms":{nanoseconds / 1e6:.3f},"key":"{key}",'
                f'"address":"{who}","request_id":"{context.request_id}"'
                f"{_verdicts_as_json(context)}}}\n"
            )
        else:
            colour, dim, reset = "", "", ""
            if self._look is LogStyle.COLOURED:
                colour, dim, reset = _COLOURS.get(status // 100, ""), _DIM, _RESET
            line = (
                f"{dim}{self._stamp}.{int(now % 1 * 1000):03}{reset}"
                f"  {colour}{status or 'left':<4}{reset}{nanoseconds / 1e6:>9.1f} ms"
                f"  {context.method:<4} {_path(context.path)[1:-1]}"
                f"  {dim}{who}{'' if key == '-' else ' ' + key} {context.request_id}{reset}"
                f"{_verdicts_as_text(context)}\n"
            )
        self._output.put(line.encode())


def _path(path: str) -> str:
    """Return a path as a JSON string of at most 200 characters, with access keys redacted."""
    if _PLAIN.fullmatch(path) and len(path) <= _MOST_PATH_CHARACTERS and "sma_" not in path:
        return f'"{path}"'
    return json.dumps(without_keys(path[:_MOST_PATH_CHARACTERS]))


def _verdicts_as_json(context: RequestContext) -> str:
    """Return the verdict and reason of a token, or how often a batch has each; "" without any."""
    reasons = context.reasons
    if not reasons:
        return ""
    if not context.route.batch:
        verdict, reason = TEXTS[reasons[0]]
        return f',"verdict":"{verdict}","reason":"{reason}"'
    verdicts = json.dumps(Tally(each.verdict.value for each in reasons))
    return f',"verdicts":{verdicts},"reasons":{json.dumps(Tally(each.value for each in reasons))}'


def _verdicts_as_text(context: RequestContext) -> str:
    if not context.reasons:
        return ""
    if not context.route.batch:
        return "  {} {}".format(*TEXTS[context.reasons[0]])
    counts = Tally(each.value for each in context.reasons)
    return "  " + ", ".join(f"{times} {reason}" for reason, times in counts.items())


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
