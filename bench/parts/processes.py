"""Measure servers of one, two and four processes on the same database, in turn."""

from contextlib import ExitStack

from bench import fleet
from bench.closed import Case, Side, measure_in_turn, write_bodies
from bench.figures import POSTGRESQL, SERVER, Series
from bench.parts.stage import Stage
from birthmark_sma.counts import counted
from birthmark_sma.web.api.validate import BATCH_PATH, PATH

COUNTS = (1, 2, 4)
_CONNECTIONS = 128
_BATCH = 1_000


def name_of(count: int) -> str:
    """Return the name of the side with this number of processes."""
    return f"{SERVER}, {counted(count, 'process', 'processes')}"


def measure(stage: Stage) -> None:
    """Measure single tokens on many connections, and batches on few."""
    filled = stage.main()
    singles = write_bodies(stage.folder / "processes.jsonl", filled.bodies)
    batches = write_bodies(
        stage.folder / "processes-batches.jsonl", fleet.batches(filled.bodies, _BATCH)
    )
    with ExitStack() as running:
        cases = []
        for count in COUNTS:
            server = running.enter_context(filled.site.serve("--workers", str(count)))
            side = Side(name_of(count), server.url, server.process.pid, filled.site)
            few = stage.options.batch_connections
            cases += [
                Case(side, PATH, singles, Series(side.name, POSTGRESQL, _CONNECTIONS)),
                Case(side, BATCH_PATH, batches, Series(side.name, POSTGRESQL, few, _BATCH)),
            ]
        measure_in_turn(stage, cases)
