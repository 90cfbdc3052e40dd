"""`python -m bench`: measure, print, and write bench/results/last.json and last.png."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import plot, profiling, run, wrk
from bench.machine import TOP
from bench.options import PARTS, Options
from bench.output import fill_document, print_report

_RESULTS = Path(__file__).with_name("results")
_WITHOUT_WRK = {"open-load", "provision", "bulk", "start", "memory", "pages"}
_MISSING = 2


def main(arguments: list[str]) -> int:
    """Measure, profile or fill the document, as the flags say.

    Return 0, 1 for an invalid run, or 2 if wrk is missing.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.document:
        fill_document(TOP / "docs" / "performance.md", _RESULTS)
        return 0
    options = _options(chosen)
    try:
        if chosen.profile or not _WITHOUT_WRK.issuperset(options.parts):
            wrk.find_wrk()
    except wrk.WrkMissingError as error:
        print(error, file=sys.stderr)
        return _MISSING
    if chosen.profile:
        profiling.profile(options, Console())
        return 0
    return _measure(options)


def _measure(options: Options) -> int:
    report = run.run(options, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / "last.json").write_text(report.as_json(), encoding="utf-8")
    plot.draw(report, _RESULTS / "last.png")
    console = Console(width=None if sys.stdout.isatty() else 100)
    print_report(report, console)
    console.print(f"\nWritten: {_RESULTS / 'last.json'} and last.png")
    return 1 if report.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    standard = Options()
    parser.add_argument("--quick", action="store_true", help="small numbers, only to see it work")
    parser.add_argument("--only", help=f"parts to measure, of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help=f"[{standard.rounds}]")
    parser.add_argument("--seconds", type=float, help=f"of a measurement [{standard.seconds:g}]")
    parser.add_argument("--devices", type=int, help=f"[{standard.devices:,}]")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument(
        "--document", action="store_true", help="put the last run into docs/performance.md"
    )
    return parser


def _options(chosen: argparse.Namespace) -> Options:
    options = Options().quick() if chosen.quick else Options()
    given = {name: getattr(chosen, name) for name in ("rounds", "seconds", "devices")}
    if chosen.only:
        parts = tuple(chosen.only.split(","))
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise SystemExit(
                f"There is no part {', '.join(unknown)}; there are {', '.join(PARTS)}."
            )
        given["parts"] = parts
    return replace(options, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
