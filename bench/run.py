"""Run the chosen parts on one durable PostgreSQL and return the report.

`bench.__main__` calls `run`.
"""

import gc
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import machine
from bench.figures import Report
from bench.options import POSTGRES_OPTIONS, Options
from bench.parts import (
    bulk,
    cost,
    memory,
    open_load,
    pages,
    processes,
    provisioning,
    replay,
    scale,
    start,
    validation,
)
from bench.parts.stage import Stage
from tests.support.databases.postgres import Postgres

# The first three parts are measured in turn in the same rounds, so that their figures can be
# compared with each other.
_STEPS: tuple[tuple[frozenset[str], Callable[[Stage], None]], ...] = (
    (frozenset({"validate", "sqlite", "batch"}), validation.measure),
    (frozenset({"processes"}), processes.measure),
    (frozenset({"cost"}), cost.measure),
    (frozenset({"replay"}), replay.measure),
    (frozenset({"open-load"}), open_load.measure),
    (frozenset({"provision"}), provisioning.measure),
    (frozenset({"start"}), start.measure),
    (frozenset({"memory"}), memory.measure),
    (frozenset({"bulk"}), bulk.measure),
    (frozenset({"scale"}), scale.measure),
    (frozenset({"pages"}), pages.measure),
)


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Measure the chosen parts. A part that raises an error is a fault in the report.

    The other parts are still measured. `say` gets a line of progress.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sma-bench-") as folder,
        Postgres(POSTGRES_OPTIONS) as postgres,
    ):
        report = Report(machine.describe(postgres.url), asdict(options))
        stage = Stage(options, Path(folder), postgres, report, say)
        for parts, measure in _STEPS:
            if parts.isdisjoint(options.parts):
                continue
            gc.collect()
            try:
                measure(stage)
            except Exception as error:
                traceback.print_exc()
                report.faults.append(f"{', '.join(sorted(parts))}: {error!r}")
    return report
