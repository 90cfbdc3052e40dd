"""Measure the validation of tokens, one per request and in batches, on both databases.

The conventional implementation and two no-op applications are measured beside it.
"""

from contextlib import ExitStack
from pathlib import Path

from bench import bare, fleet
from bench.closed import Case, Side, measure_in_turn, write_bodies
from bench.figures import (
    CONVENTIONAL,
    NO_DATABASE,
    NOOP,
    PLAIN_NOOP,
    POSTGRESQL,
    SERVER,
    SQLITE,
    Series,
)
from bench.parts.stage import Filled, Stage
from bench.serving import serving
from birthmark_sma.web.api.validate import BATCH_PATH, PATH

BARE = "derive and open, one core"
_BATCHES = (100, 1_000)


def measure(stage: Stage) -> None:
    """Measure the chosen parts of `validate`, `sqlite` and `batch`, in the same rounds."""
    options = stage.options
    with ExitStack() as running:
        cases = []
        if "validate" in options.parts:
            cases += _sides_to_compare(stage, running)
        databases = [POSTGRESQL] if {"validate", "batch"} & set(options.parts) else []
        databases += [SQLITE] if {"sqlite", "batch"} & set(options.parts) else []
        for database in databases:
            cases += _this_server(stage, running, database)
        measure_in_turn(stage, cases)
    if "validate" in options.parts:
        with stage.main().site.opened() as authority:
            for _ in range(options.rounds):
                rate = bare.openings_per_second(authority, stage.main().bodies, options.seconds / 2)
                stage.report.read(BARE, "tokens/s", rate)


def _sides_to_compare(stage: Stage, running: ExitStack) -> list[Case]:
    main = stage.main()
    bodies = _singles(stage, main, POSTGRESQL)
    site = main.site
    folder = stage.folder
    conventional = running.enter_context(
        serving("bench.conventional", "plain", folder, site.environ)
    )
    noop = running.enter_context(serving("bench.noop", "bounded", folder, {}))
    plain = running.enter_context(serving("bench.noop", "plain", folder, {}))
    sides = [
        (Side(CONVENTIONAL, conventional.url, conventional.process.pid, site), POSTGRESQL),
        (Side(NOOP, noop.url, noop.process.pid), NO_DATABASE),
        (Side(PLAIN_NOOP, plain.url, plain.process.pid), NO_DATABASE),
    ]
    return [
        Case(side, PATH, bodies, Series(side.name, database, connections))
        for side, database in sides
        for connections in stage.options.connections
    ]


def _this_server(stage: Stage, running: ExitStack, database: str) -> list[Case]:
    filled = stage.main() if database == POSTGRESQL else stage.on_sqlite()
    server = running.enter_context(filled.site.serve())
    side = Side(SERVER, server.url, server.process.pid, filled.site)
    cases = []
    if {POSTGRESQL: "validate", SQLITE: "sqlite"}[database] in stage.options.parts:
        bodies = _singles(stage, filled, database)
        cases += [
            Case(side, PATH, bodies, Series(SERVER, database, connections))
            for connections in stage.options.connections
        ]
    if "batch" in stage.options.parts:
        for size in _BATCHES:
            path = stage.folder / f"{database}-{size}.jsonl"
            batches = write_bodies(path, fleet.batches(filled.bodies, size))
            series = Series(SERVER, database, stage.options.batch_connections, size)
            cases.append(Case(side, BATCH_PATH, batches, series))
    return cases


def _singles(stage: Stage, filled: Filled, database: str) -> Path:
    return write_bodies(stage.folder / f"{database}.jsonl", filled.bodies)
