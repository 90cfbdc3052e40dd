"""Measure a large fleet with a long audit log beside a small fleet without one.

`/stats` is measured on both.
"""

import time
from contextlib import ExitStack

import httpx2

from bench.closed import Case, Side, measure_in_turn, write_bodies
from bench.figures import POSTGRESQL, Series
from bench.parts.stage import Stage
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.web.api.validate import PATH

SMALL = "small fleet"
LARGE = "large fleet"
CONNECTIONS = 128
_SMALL_DEVICES = 1_000
_STATS_TIMES = 50
_STATS_SECONDS = 60


def measure(stage: Stage) -> None:
    """Measure both fleets in turn on the same PostgreSQL, then `/stats` on each."""
    small = stage.filled("small", devices=_SMALL_DEVICES, key_type=CaKeyType.EC_P256)
    large = stage.with_history("large")
    with ExitStack() as running:
        cases = []
        for name, filled in ((SMALL, small), (LARGE, large)):
            server = running.enter_context(filled.site.serve())
            side = Side(name, server.url, server.process.pid, filled.site)
            bodies = write_bodies(stage.folder / f"{name}.jsonl", filled.bodies)
            cases.append(Case(side, PATH, bodies, Series(name, POSTGRESQL, CONNECTIONS)))
        measure_in_turn(stage, cases)
        for case in cases:
            _time_stats(stage, case.side)


def stats_name(side: str) -> str:
    """Return the name of the reading of `/stats` for a side."""
    return f"/stats, {side}"


def _time_stats(stage: Stage, side: Side) -> None:
    began = time.perf_counter()
    with httpx2.Client(base_url=side.url, trust_env=False, timeout=60) as client:
        for _ in range(_STATS_TIMES):
            asked = time.perf_counter()
            answer = client.get("/stats")
            stage.report.read(stats_name(side.name), "ms", (time.perf_counter() - asked) * 1e3)
            if answer.status_code != 200:
                stage.report.faults.append(f"{stats_name(side.name)}: {answer.status_code}")
            if time.perf_counter() - began > _STATS_SECONDS:
                break
    stage.say(f"{stats_name(side.name)}: {stage.report.reading(stats_name(side.name)):.1f} ms")
