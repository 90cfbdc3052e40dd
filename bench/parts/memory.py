"""Measure the resident memory of one server process before and after many validations."""

from bench import connections, fleet
from bench.parts.open_load import passed
from bench.parts.stage import Stage
from bench.processes import resident_mb
from birthmark_sma.web.api.validate import BATCH_PATH, PATH

BEFORE = "resident memory before"
AFTER = "resident memory after the validations"
_SINGLE_SHARE = 5  # every fifth token comes in a request of its own, the others in batches
_BATCH = 1_000


def measure(stage: Stage) -> None:
    """Send tokens one by one, then in batches of 1,000, to a server that has just started."""
    filled = stage.main()
    wanted = stage.options.memory_validations
    batches = fleet.batches(filled.bodies, _BATCH)
    singles = wanted // _SINGLE_SHARE
    turns = (wanted - singles) // _BATCH
    with filled.site.serve() as server:
        stage.report.read(BEFORE, "MB", resident_mb(server.process.pid))
        stage.say(f"memory: {wanted:,} validations")
        one_by_one = connections.closed(
            server.url + PATH, filled.bodies, count=singles, connections=64, check=passed
        )
        together = connections.closed(
            server.url + BATCH_PATH, batches, count=turns, connections=4, check=_all_passed
        )
        after = resident_mb(server.process.pid)
    if one_by_one.wrong or together.wrong:
        stage.report.faults.append("memory: some answers were wrong")
    stage.report.read(AFTER, "MB", after)
    stage.say(f"{AFTER}: {after:.0f} MB")


def _all_passed(body: bytes) -> bool:
    return body.count(b'"validation_result":"PASS"') == _BATCH
