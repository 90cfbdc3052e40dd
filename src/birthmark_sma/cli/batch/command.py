"""`sma provision-batch`: parse the options, run the batch and print the counts.

`cli/main.py` registers the command. It must never overwrite the file of devices.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands.init import require_sqlite_file
from birthmark_sma.cli.options import (
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    Prototype,
    PublicUrl,
    settings_from,
)
from birthmark_sma.cli.output import print_json, print_stderr, progress_bar, waiting

if TYPE_CHECKING:
    from birthmark_sma.cli.batch.records import BatchFormat
    from birthmark_sma.cli.batch.run import Tally


def provision_batch(
    devices: Annotated[
        str,
        typer.Argument(
            help="CSV or JSON Lines, the fields being those of POST /api/v1/devices/provision;"
            " - for standard input."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Where results go, a JSON line a device: keep them secret.")
    ],
    refused: Annotated[
        Path | None,
        typer.Option(help="Where refused lines are told. Default: beside the results."),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="csv or jsonl. Default: by the file's name.")
    ] = None,
    make_keys: Annotated[
        bool,
        typer.Option(
            "--make-keys",
            help="Make a P-256 key for each device that brings none; its result has the private"
            " key. For a factory that writes devices' memory.",
        ),
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Default: one more than there are cores.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    prototype: Prototype = False,
    public_url: PublicUrl = None,
    as_json: Json = False,
) -> None:
    """Provision many devices.

    A line that is refused never stops the rest. A run that was cut off, however, is simply run
    again with the same arguments: it carries on, and every device has its result exactly once.
    """
    from birthmark_sma.authority.authority import opened_in_bulk
    from birthmark_sma.cli.batch.records import read_records
    from birthmark_sma.cli.batch.results import open_results
    from birthmark_sma.cli.batch.run import COLUMNS, Batch

    settings = settings_from(
        prototype=prototype,
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        public_url=public_url,
    )
    refusals = refused or output.with_name(f"{output.stem}.refused.jsonl")
    records_format = _format_of(devices, file_format)
    with _opened(devices) as (file, size):
        # Before `open_results`, which creates the output file.
        _tell_apart(file, output, refusals)
        require_sqlite_file(settings)
        began = time.monotonic()
        with opened_in_bulk(settings) as bulk, open_results(output) as results:
            batch = Batch(bulk, results, refusals)
            with waiting("Looking for earlier results"):
                batch.resume()
            # Enter the workers before the progress bar: they fork, and the bar starts a thread.
            workers = batch.workers(processes or (os.cpu_count() or 1) + 1, make_keys=make_keys)
            with workers, progress_bar("Provisioning", of_bytes=True) as progress:
                batch.provision(
                    workers,
                    read_records(file, records_format, COLUMNS),
                    lambda done: progress(done, size),
                )
    _tell(batch.tally, time.monotonic() - began, refusals, as_json=as_json)
    if batch.tally.refused:
        raise typer.Exit(exit_codes.REFUSED)


def _tell(tally: "Tally", seconds: float, refusals: Path, *, as_json: bool) -> None:
    devices_per_second = tally.provisioned / seconds
    if as_json:
        print_json(
            {
                "provisioned": tally.provisioned,
                "provisioned_before": tally.before,
                "refused": tally.refused,
                "seconds": round(seconds, 3),
                "devices_per_second": round(devices_per_second, 1),
            }
        )
    print_stderr(
        f"{tally.provisioned:,} devices were provisioned in {seconds:,.1f} s:"
        f" {devices_per_second:,.0f} devices/s."
    )
    if tally.before:
        print_stderr(f"{tally.before:,} were provisioned by an earlier run.")
    if tally.refused:
        print_stderr(f"{tally.refused:,} lines were refused: see {refusals}")


def _format_of(devices: str, given: str | None) -> "BatchFormat":
    """Return the format from --format, else from the file's extension."""
    from birthmark_sma.cli.batch.records import BatchFormat

    known = {"csv": BatchFormat.CSV, "jsonl": BatchFormat.JSONL, "ndjson": BatchFormat.JSONL}
    name = given or Path(devices).suffix.removeprefix(".").lower()
    if name not in known:
        raise typer.BadParameter("Is it CSV or JSON Lines? Say --format csv or --format jsonl.")
    return known[name]


def _tell_apart(devices: BinaryIO, output: Path, refusals: Path) -> None:
    """Raise BadParameter if two of the three files are the same file, also through links.

    Writing would destroy the other one.
    """
    if refusals.resolve() == output.resolve() or _is_file(refusals, output):
        raise typer.BadParameter("--output and --refused name one file.")
    # Compare the open file's inode: standard input may be redirected from one of the outputs.
    told = os.fstat(devices.fileno())
    for path, what in ((output, "results"), (refusals, "refused lines")):
        if path.exists() and os.path.samestat(told, path.stat()):
            raise typer.BadParameter(f"The devices would be overwritten: {path} takes the {what}.")


def _is_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


@contextmanager
def _opened(devices: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yield the file of devices and its size in bytes, or None if the size is unknown."""
    if devices == "-":
        yield sys.stdin.buffer, None
        return
    with Path(devices).open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size or None
