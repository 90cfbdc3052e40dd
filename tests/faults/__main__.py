"""`python -m tests.faults`: play all faults, print the table, and write docs/operate/faults.md.

`make faults` calls it. `--only WORDS` plays the faults whose name or bed has the words, and renews
their rows alone. Exit code 1: something acknowledged was lost, doubled or wrong, a probe did not
tell the truth, or service did not come back.
"""

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from bench.machine import describe
from tests.faults import page
from tests.faults.beds import OPENERS, Bed, BedKind, BedUnavailableError, Place
from tests.faults.catalog import FAULTS
from tests.faults.fault import Fault, Result
from tests.faults.play import play
from tests.support.databases.pgbouncer import PgBouncerUnavailableError

_LAST_RUN = Path(__file__).parents[2] / ".cache" / "faults" / "last-run"
"""The logs of the servers stay here until the next run."""


def main(arguments: Sequence[str]) -> int:
    """Play the chosen faults, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", help="play the faults with these words alone")
    only = parser.parse_args(arguments).only.lower()
    chosen = [each for each in FAULTS if only in f"{each.bed.value}: {each.name}".lower()]
    began = time.monotonic()
    # A shell lets its background jobs ignore it, and the programs that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(_LAST_RUN, ignore_errors=True)
    with Place(_LAST_RUN) as place:
        results = [
            result
            for kind, group in groupby(chosen, key=lambda each: each.bed)
            for result in _play_all(kind, list(group), place)
        ]
        load = f"{os.getloadavg()[-1]:.0f} in the last 15 minutes"
        machine = describe(place.postgres.url) | {"load average": load}
    page.write(machine, results)
    print(page.render(machine, results))
    print(f"{len(results)} faults in {time.monotonic() - began:.0f} s")
    complaints = [
        f"{each.bed}: {each.name}: {what}" for each in results for what in each.complaints
    ]
    for each in complaints:
        print(each, file=sys.stderr)
    return 1 if complaints else 0


def _play_all(kind: BedKind, faults: Sequence[Fault], place: Place) -> Iterator[Result]:
    """Play faults on one server, or on a new one after a fault that it did not survive."""
    bed: Bed | None = None
    try:
        for fault in faults:
            _say(f"{kind.value}: {fault.name}")
            try:
                bed = bed or OPENERS[kind](place)
                result = play(fault, bed)
            except (BedUnavailableError, PgBouncerUnavailableError) as error:
                _say(f"left out: {error}")
                continue
            except Exception:
                traceback.print_exc()
                yield Result.broken(fault)
                if bed is not None:
                    bed.close()
                bed = None
            else:
                _say(f"  {' | '.join(page.cells(result))}")
                yield result
    finally:
        if bed is not None:
            bed.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
