"""What counting and logging costs one camera token: `python -m bench.instruments`."""

import os
from collections.abc import Callable
from time import perf_counter_ns
from timeit import repeat

from birthmark_sma.authority.callers import Caller
from birthmark_sma.authority.figures import VALIDATIONS, Figures
from birthmark_sma.authority.group_commit import Batch
from birthmark_sma.web.request_log import Look, RequestLog
from birthmark_sma.web.traffic import BEGAN, Traffic

_TIMES = 2_000
_ROUNDS = 300
"""The best of them is told: others work on a machine too."""
_BATCH = 40
"""How many tokens share a commit under load, about."""


def main() -> None:
    """Print microseconds a token."""
    traffic, figures = Traffic(), Figures()
    scope: dict[str, object] = {"path": "/api/v1/validate/nuc", "method": "POST"}

    def request() -> None:
        scope[BEGAN] = perf_counter_ns()
        traffic.answered_directly(scope)

    def batch() -> None:
        figures.batch(VALIDATIONS, Batch(_BATCH, tuple, 0, 1_000_000, 4_000_000))

    def table() -> None:
        figures.sheet[40 + 1234 // 100] += 1

    log = RequestLog(os.open(os.devnull, os.O_WRONLY), look=Look.JSON)
    whole = {**scope, "client": ("127.0.0.1", 1), "headers": [], "caller": Caller("127.0.0.1")}

    def line() -> None:
        log.note(dict(whole), 200, 1_000_000)

    def written() -> None:
        for _ in range(_BATCH):
            line()
        log.write()

    a_line = _microseconds(written, 50) / _BATCH
    a_request = _microseconds(request)
    a_batch = _microseconds(batch) / _BATCH
    a_table = _microseconds(table)
    print(f"the request  {a_request:5.2f} us: route, method, status, latency")
    print(f"its batch    {a_batch:5.2f} us: size, work, commit, shared by {_BATCH}")
    print(f"its table    {a_table:5.2f} us")
    print(f"its line     {a_line:5.2f} us: put together and written, with a new request id")
    print(f"in all       {a_request + a_batch + a_table + a_line:5.2f} us a camera token")


def _microseconds(work: Callable[[], None], times: int = _TIMES) -> float:
    return min(repeat(work, number=times, repeat=_ROUNDS)) / times * 1e6


if __name__ == "__main__":
    main()
