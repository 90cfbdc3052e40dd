"""Measure the cost of metrics, logs and traces per camera token: `python -m bench.instruments`.

It calls the instruments directly, without a server or a database.
"""

import logging
import os
from collections.abc import Callable
from time import perf_counter_ns
from timeit import repeat
from typing import Any

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.server_metrics import VALIDATIONS, ServerMetrics
from birthmark_sma.authority.validation.service import Steps
from birthmark_sma.runtime.background_output import BackgroundOutput
from birthmark_sma.storage.group_commit import Batch
from birthmark_sma.web.logs.request_ids import BEGAN, TRACE
from birthmark_sma.web.logs.request_log import LogStyle, RequestLog
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.tracing import Tracing

_TIMES = 2_000
_ROUNDS = 300
"""The fastest round counts, because other programs disturb the others."""
_BATCH = 40
"""About the number of tokens that share a commit under load."""


def main() -> None:
    """Print the microseconds per camera token of each instrument."""
    traffic, figures = RequestMetrics(), ServerMetrics()
    scope: dict[str, object] = {"path": "/api/v1/validate/nuc", "method": "POST"}

    def request() -> None:
        scope[BEGAN] = perf_counter_ns()
        traffic.answered_directly(scope)

    def batch() -> None:
        figures.batch(VALIDATIONS, Batch(_BATCH, tuple, 0, 1_000_000, 4_000_000))

    def table() -> None:
        figures.own_counters[40 + 1234 // 100] += 1

    output = BackgroundOutput(os.open(os.devnull, os.O_WRONLY))
    log = RequestLog(output, look=LogStyle.JSON)
    whole = {**scope, "client": ("127.0.0.1", 1), "headers": [], "caller": Caller("127.0.0.1")}

    def line() -> None:
        log.note(dict(whole), 200, 1_000_000)

    def written() -> None:
        for _ in range(_BATCH):
            line()
        output.write_all()

    a_line = _microseconds(written, 50) / _BATCH
    a_request = _microseconds(request)
    a_batch = _microseconds(batch) / _BATCH
    a_table = _microseconds(table)
    print(f"the request  {a_request:5.2f} us: route, method, status, latency")
    print(f"its batch    {a_batch:5.2f} us: size, work, commit, shared by {_BATCH}")
    print(f"its table    {a_table:5.2f} us")
    print(f"its line     {a_line:5.2f} us: put together and written, with a new request id")
    print(f"in all       {a_request + a_batch + a_table + a_line:5.2f} us a camera token")
    a_trace = _microseconds(_traced(), 5) / _BATCH
    print(f"a trace      {a_trace:5.1f} us more, where SMA_TRACES_URL is set and it is sampled")


def _traced() -> Callable[[], None]:
    """Return a function that traces a batch of validations with all its spans.

    No collector listens, so the exporter's queue drops the spans.
    """
    logging.disable(logging.CRITICAL)
    tracing = Tracing("http://127.0.0.1:9/v1/traces")
    moment = perf_counter_ns()
    scope: dict[str, Any] = {"path": "/api/v1/validate/nuc", "method": "POST", "headers": []}
    scope[BEGAN] = moment

    def validations() -> None:
        scopes = [scope.copy() for _ in range(_BATCH)]
        for each in scopes:
            tracing.begin(each)
            each[TRACE].parsing()
            each[TRACE].offered()
        batch = Batch(_BATCH, lambda: scopes, moment, moment, moment)
        tracing.note_batch(batch, Steps(moment, moment, moment, moment))
        for each in scopes:
            each[TRACE].end(200)

    return validations


def _microseconds(work: Callable[[], None], times: int = _TIMES) -> float:
    return min(repeat(work, number=times, repeat=_ROUNDS)) / times * 1e6


if __name__ == "__main__":
    main()
