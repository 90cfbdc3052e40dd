"""Measure the latency of requests at a constant rate, also if the server is slower."""

from bench import connections
from bench.figures import POSTGRESQL, SQLITE
from bench.parts.stage import Stage
from birthmark_sma.web.api.validate import PATH

_CONNECTIONS = 64


def measure(stage: Stage) -> None:
    """Send the rate to the server on PostgreSQL and on SQLite, in turn, after one warm-up round."""
    options = stage.options
    sides = {POSTGRESQL: stage.main(), SQLITE: stage.on_sqlite()}
    with sides[POSTGRESQL].site.serve() as first, sides[SQLITE].site.serve() as second:
        urls = {POSTGRESQL: first.url, SQLITE: second.url}
        for number in range(-1, options.rounds):  # the first is to warm up
            for database, filled in sides.items():
                load = connections.at_rate(
                    urls[database] + PATH,
                    filled.bodies,
                    rate=options.open_load_rate,
                    seconds=options.seconds * (1 if number < 0 else 2),
                    connections=_CONNECTIONS,
                    check=passed,
                )
                if number >= 0:
                    _note(stage, database, load)


def passed(body: bytes) -> bool:
    """Return whether the body of a response is a PASS."""
    return b'"validation_result":"PASS"' in body


def name_of(database: str, what: str) -> str:
    """Return the name of a reading of this part."""
    return f"open load on {database}: {what}"


def _note(stage: Stage, database: str, load: connections.Load) -> None:
    report = stage.report
    report.read(name_of(database, "offered"), "requests/s", stage.options.open_load_rate)
    report.read(name_of(database, "answered"), "requests/s", load.answers / load.seconds)
    report.read(name_of(database, "p50"), "ms", load.p50_ms)
    report.read(name_of(database, "p95"), "ms", load.p95_ms)
    report.read(name_of(database, "p99"), "ms", load.p99_ms)
    report.read(name_of(database, "the generator's own lag, p99"), "ms", load.lag_p99_ms)
    report.read(name_of(database, "the generator's CPU"), "cores", load.generator_cpu)
    if load.wrong:
        report.faults.append(f"open load on {database}: {load.wrong} answers were wrong")
    stage.say(f"open load on {database}: p99 {load.p99_ms:.1f} ms")
