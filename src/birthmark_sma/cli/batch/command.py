"""`sma provision-batch`: parse the options, run the batch and print the counts.

`cli/main.py` registers the command. It must never overwrite the file of devices.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from typer import Argument, Option

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.opening import require_sqlite_file
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_json, print_stderr, progress_bar, waiting
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from birthmark_sma.cli.batch.records import BatchFormat
    from birthmark_sma.cli.batch.run import Batch, Tally
    from birthmark_sma.config import Settings


def provision_batch(
    settings: "Settings",
    devices: Annotated[
        str,
        Argument(
            help="A CSV or JSON Lines file with the fields of POST /api/v1/devices/provision, or -"
            " for standard input."
        ),
    ],
    output: Annotated[
        Path,
        Option(help="The file for the results: a JSON line for each device, with its secrets."),
    ],
    refused: Annotated[
        Path | None, Option(help="The file for refused lines. Default: beside the results.")
    ] = None,
    file_format: Annotated[
        str | None, Option("--format", help="csv or jsonl. Default: from the file's extension.")
    ] = None,
    make_keys: Annotated[
        bool,
        Option(
            "--make-keys",
            help="Create a P-256 key for each device without one. Its result holds the private key."
            " For a factory that writes the devices' memory.",
        ),
    ] = False,
    processes: Annotated[
        int | None,
        Option(
            min=1, max=256, help="The number of processes. Default: the number of cores, plus one."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Provision many devices.

    A refused line does not stop the others. If a run was interrupted, run the command again with
    the same arguments: it continues, and every device gets exactly one result.
    """
    refusals = refused or output.with_name(f"{output.stem}.refused.jsonl")
    records_format = _find_format(devices, file_format)
    with _opened(devices) as (file, size):
        # Before `open_results`, which creates the output file.
        _check_different_files(file, output, refusals)
        require_sqlite_file(settings)
        began = time.monotonic()
        with _opened_batch(settings, output, refusals) as batch:
            # Enter the workers before the progress bar: they fork, and the bar starts a thread.
            workers = batch.workers(processes or (os.cpu_count() or 1) + 1, make_keys=make_keys)
            with workers, progress_bar("Provisioning", of_bytes=True) as progress:
                batch.provision(workers, file, records_format, lambda done: progress(done, size))
    _print_counts(batch.tally, time.monotonic() - began, refusals, as_json=as_json)
    if batch.tally.refused:
        raise typer.Exit(exit_codes.REFUSED)


@contextmanager
def _opened_batch(settings: "Settings", output: Path, refusals: Path) -> Iterator["Batch"]:
    """Open the authority and the results file, and recover what an interrupted run left."""
    from birthmark_sma.authority.authority import opened_in_bulk
    from birthmark_sma.cli.batch.results import open_results
    from birthmark_sma.cli.batch.run import Batch

    with opened_in_bulk(settings) as bulk, open_results(output) as results:
        batch = Batch(bulk, results, refusals)
        with waiting("Reading earlier results"):
            batch.resume()
        yield batch


def _print_counts(tally: "Tally", seconds: float, refusals: Path, *, as_json: bool) -> None:
    devices_per_second = tally.provisioned / seconds
    if as_json:
        rate = {"seconds": round(seconds, 3), "devices_per_second": round(devices_per_second, 1)}
        print_json(asdict(tally) | rate)
    devices = counted(tally.provisioned, "device was", "devices were")
    print_stderr(f"{devices} provisioned in {seconds:,.1f} s: {devices_per_second:,.0f} devices/s.")
    if tally.provisioned_before:
        before = counted(tally.provisioned_before, "was", "were")
        print_stderr(f"{before} provisioned by an earlier run.")
    if tally.refused:
        print_stderr(f"{counted(tally.refused, 'line was', 'lines were')} refused: see {refusals}")


def _find_format(devices: str, given: str | None) -> "BatchFormat":
    """Return the format from --format, else from the file's extension."""
    from birthmark_sma.cli.batch.records import BatchFormat

    known = {"csv": BatchFormat.CSV, "jsonl": BatchFormat.JSONL, "ndjson": BatchFormat.JSONL}
    name = given or Path(devices).suffix.removeprefix(".").lower()
    if name not in known:
        raise typer.BadParameter("The format is unknown. Add --format csv or --format jsonl.")
    return known[name]


def _check_different_files(devices: BinaryIO, output: Path, refusals: Path) -> None:
    """Raise BadParameter if two of the three files are the same file, also through links.

    Writing would destroy the other one.
    """
    files = {output: "results", refusals: "refused lines"}
    if len({each.resolve() for each in files}) == 1 or (
        output.exists() and refusals.exists() and output.samefile(refusals)
    ):
        raise typer.BadParameter("--output and --refused are the same file. Choose two files.")
    # Compare the open file's inode: standard input may be redirected from one of the outputs.
    source = os.fstat(devices.fileno())
    for path, what in files.items():
        if path.exists() and os.path.samestat(source, path.stat()):
            raise typer.BadParameter(
                f"The {what} would overwrite the devices in {path}. Choose another file."
            )


@contextmanager
def _opened(devices: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yield the file of devices and its size in bytes, or None if the size is unknown."""
    if devices == "-":
        yield sys.stdin.buffer, None
        return
    with Path(devices).open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size or None
