"""Measure servers under closed load, in turn, so that a disturbance of the machine hits all alike.

The parts `validation`, `replay` and `scale` call `measure_in_turn`. Every measurement is compared
with the audit log. A difference makes the run invalid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from bench import wrk
from bench.figures import Round, Series
from bench.parts.stage import Stage
from bench.processes import cpu_seconds, resident_mb, wait_until_calm
from bench.sites import Site

_CALM_SECONDS = 30
_SAMPLE = 50
_WARM_UP_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Side:
    """A running server. If it has a site, responses are compared with the site's audit log."""

    name: str
    url: str
    pid: int
    site: Site | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One side under one load. `bodies` is a file of request bodies, one on each line.

    Each body has as many tokens as `series.batch` says.
    """

    side: Side
    path: str
    bodies: Path
    series: Series
    tokens_repeat: bool = True
    """True if the tokens repeat during a run.

    The replay ledger is then emptied before each measurement, because tokens of a camera are new.
    """


def write_bodies(path: Path, bodies: Sequence[bytes]) -> Path:
    """Write request bodies to a file, one on each line, and return its path."""
    path.write_bytes(b"\n".join(bodies) + b"\n")
    return path


def measure_in_turn(
    stage: Stage, cases: Sequence[Case], *, prepare: Callable[[], None] = lambda: None
) -> None:
    """Check a sample of each case's responses, warm up, then measure all cases in each round.

    `prepare` is called before the warm-up and before each round. Results and faults go into the
    report. Raises RuntimeError if a sample is wrong.
    """
    report, rounds = stage.report, stage.options.rounds
    prepare()
    for case in cases:
        _check_sample(case)
        _measure(case, _WARM_UP_SECONDS, [])
    report.series.extend(case.series for case in cases)
    for number in range(rounds):
        prepare()
        for case in cases:
            measured = _measure(case, stage.options.seconds, report.faults)
            case.series.rounds.append(measured)
            stage.say(
                f"round {number + 1} of {rounds}: {describe(case.series)}:"
                f" {measured.tokens_per_second:,.0f} tokens/s"
            )


def describe(series: Series) -> str:
    """Return a series' name and number of connections, for messages."""
    return f"{series.name}, {series.connections} connections"


def _check_sample(case: Case) -> None:
    """Raise RuntimeError unless the first 50 tokens all get PASS, complete with their serial."""
    with case.bodies.open("rb") as lines, httpx2.Client(trust_env=False, timeout=60) as client:
        for _, body in zip(range(max(1, _SAMPLE // case.series.batch)), lines, strict=False):
            answer = client.post(
                case.side.url + case.path,
                content=body.strip(),
                headers={"Content-Type": "application/json"},
            )
            results = answer.json().get("results", [answer.json()])
            if answer.status_code != 200 or len(results) != case.series.batch:
                raise RuntimeError(f"{describe(case.series)}: {answer.status_code} {answer.text}")
            for each in results:
                _check_verdict(case, each)


def _check_verdict(case: Case, verdict: dict[str, Any]) -> None:
    complete = case.side.site is None or str(verdict["device_serial"]).startswith("bench-")
    if verdict["validation_result"] != "PASS" or not complete:
        raise RuntimeError(f"{describe(case.series)}: a genuine token got {verdict}")


def _measure(case: Case, seconds: float, faults: list[str]) -> Round:
    side, series = case.side, case.series
    database_pid = side.site.database_pid if side.site else None
    if case.tokens_repeat and side.site:
        side.site.forget_tokens()
    # The times before and after surround the load alone, without the emptying of the ledger.
    moment = datetime.now(UTC).isoformat(" ", "microseconds")
    server_before = cpu_seconds(side.pid)
    database_before = cpu_seconds(database_pid) if database_pid else 0.0
    result = wrk.load(
        side.url + case.path, case.bodies, connections=series.connections, seconds=seconds
    )
    server_cpu = cpu_seconds(side.pid) - server_before
    database_cpu = cpu_seconds(database_pid) - database_before if database_pid else 0.0
    if not wait_until_calm(side.pid, _CALM_SECONDS):
        faults.append(f"{describe(series)}: it was still busy {_CALM_SECONDS} s later")
    tokens = result.requests * series.batch
    faults += _faults(case, result, tokens, moment)
    return Round(
        tokens_per_second=tokens / result.seconds,
        p50_ms=result.p50_ms,
        p95_ms=result.p95_ms,
        p99_ms=result.p99_ms,
        server_cpu=server_cpu / max(tokens, 1) * 1_000,
        database_cpu=database_cpu / max(tokens, 1) * 1_000,
        resident_mb=resident_mb(side.pid),
    )


def _faults(case: Case, result: wrk.WrkResult, tokens: int, moment: str) -> list[str]:
    """Compare the responses with the audit log and return the differences.

    The log must have at least as many rows as there were responses, and only PASS. More rows are
    right, because wrk ends with requests under way.
    """
    found = []
    if result.requests == 0:
        found.append("nothing was answered")
    if result.broken:
        found.append(f"{result.broken} connections broke or timed out")
    if result.refused:
        found.append(f"{result.refused} answers were refusals")
    if case.side.site is not None:
        rows, failed = case.side.site.recorded_since(moment)
        if rows < tokens:
            found.append(f"{tokens} answers, but {rows} rows in the audit trail")
        if failed:
            found.append(f"{failed} genuine tokens did not pass")
    return [f"{describe(case.series)}: {each}" for each in found]
