"""`sma audit`: verify the audit log and the acts, and print their checkpoints.

The work is in `authority/audit_chain/`. Nothing here writes to the database or needs a secret.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.exit_codes import DATABASE, FAILED
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import (
    pause,
    print_fields,
    print_json,
    print_line,
    print_stderr,
    waiting,
)
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from birthmark_sma.authority.audit_chain.checkpoint import KeptNote
    from birthmark_sma.authority.audit_chain.verification.findings import Finding, Verified
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

app = typer.Typer(
    no_args_is_help=True, help="Verify that nobody changed the audit log or the acts."
)
_FOLLOWING_SECONDS = 5.0
_MOST_NAMED = 1_000

Kept = Annotated[
    Path | None,
    Option("--checkpoints", help="Output of `sma audit checkpoints` that was kept elsewhere."),
]
PublicKey = Annotated[
    str | None,
    Option("--public-key", help="The key of `sma audit public-key`, kept elsewhere."),
]


Export = Annotated[
    Path | None,
    Option("--export", help="A file of `sma audit export`. Then no database is needed."),
]


@command(app, "audit verify")
def verify(
    settings: "Settings",
    export: Export = None,
    kept: Kept = None,
    public_key: PublicKey = None,
    as_json: Json = False,
) -> None:
    """Verify each audit row and act, and name those that were changed.

    Exit code 0 if all is as it was written, 1 if not. Servers may run meanwhile. Without
    --checkpoints, it cannot notice that the newest rows were deleted together with their
    checkpoints. Without --public-key, the key in the database or in the export is trusted.
    """
    from birthmark_sma.authority.audit_chain.signed_note import THE_KEY
    from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
    from birthmark_sma.authority.audit_chain.verification.findings import Verified
    from birthmark_sma.authority.audit_chain.verification.trail import verify

    notes = list(_read_kept(kept)) if kept else []
    done = Verified()
    named: list[Finding] = []
    number = 0
    opened = _opened_trail(settings) if export is None else _opened_export(export)
    with opened as connection, waiting("Verifying"):
        reader = DatabaseReader(connection)
        key = public_key or dict(reader.verifiers()).get(THE_KEY, "")
        for finding in verify(reader, public_key, notes, done):
            number += 1
            if number <= _MOST_NAMED:
                named.append(finding)
    _print_result(named, number, done, key, as_json=as_json)
    if number:
        raise typer.Exit(FAILED)


@contextmanager
def _opened_trail(settings: "Settings") -> "Iterator[Connection]":
    """Yield one snapshot of the database."""
    from birthmark_sma.storage.locks import hold_snapshot
    from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

    with (
        existing_database(settings) as database,
        database.read(LONG_SECONDS) as connection,
    ):
        hold_snapshot(connection)
        yield connection


@contextmanager
def _opened_export(export: Path) -> "Iterator[Connection]":
    """Yield a database with the rows of an export."""
    from birthmark_sma.authority.audit_chain.export import load_export

    with TemporaryDirectory(prefix="sma-audit-") as folder:
        with waiting("Loading the export"):
            database = load_export(export, Path(folder))
        try:
            with database.read() as connection:
                yield connection
        finally:
            database.close()


@command(app, "audit export")
def export(
    settings: "Settings",
    output: Annotated[Path, Option("--output", help="The file to write. It must not exist.")],
    as_json: Json = False,
) -> None:
    """Write the trail to a file, which `sma audit verify --export` verifies on any machine.

    It has all audit rows, acts, batches and checkpoints, and no secret. The audit rows name devices
    and callers.
    """
    from birthmark_sma.authority.audit_chain.export import write_export
    from birthmark_sma.authority.audit_chain.keys import find_verifier

    with _opened_trail(settings) as connection, waiting("Exporting"):
        try:
            numbers = write_export(connection, find_verifier(connection), output)
        except OSError as error:
            raise ConfigurationError(
                f"{output} cannot be written: {error.strerror}. Give a file that does not exist, on"
                " a disk with room."
            ) from None
    if as_json:
        print_json({"file": str(output), "rows": numbers})
        return
    print_fields([(name, f"{number:,} rows") for name, number in numbers.items()])
    print_line(f"Exported to {output}. Verify it: sma audit verify --export {output}")


@command(app, "audit checkpoints")
def checkpoints(
    settings: "Settings",
    since: Annotated[int, Option("--since", min=1, help="The number of the first one.")] = 1,
    follow: Annotated[
        bool, Option("--follow", help="Print new ones as they are made, until interrupted.")
    ] = False,
) -> None:
    """Print the signed checkpoints, to keep them where nobody who has the database can write."""
    with existing_database(settings) as database:
        printed = _print_notes(database, since)
        while follow and not pause(_FOLLOWING_SECONDS):
            printed = _print_notes(database, printed)


@command(app, "audit public-key")
def public_key(settings: "Settings") -> None:
    """Print the public key that verifies the checkpoints.

    Keep it where nobody who has the database can write. The first server that runs creates the key.
    """
    from birthmark_sma.authority.audit_chain.keys import find_verifier

    with existing_database(settings) as database, database.read() as connection:
        key = find_verifier(connection)
    if key is None:
        print_stderr("There is no key yet. A server creates it when it starts: sma serve")
        raise typer.Exit(DATABASE)
    print_line(key)


def _print_notes(database: "Database", since: int) -> int:
    """Print the checkpoints from a number on; return the number of the next one."""
    from birthmark_sma.authority.audit_chain.checkpoints import read_notes

    with database.read() as connection:
        for number, note in read_notes(connection, since):
            print_line(note)
            since = number + 1
    return since


def _read_kept(path: Path) -> "Iterator[KeptNote]":
    """Yield the checkpoints in a file, by number. Raises ConfigurationError if it has none.

    A checkpoint that was cut off, as by an interruption of --follow, is left out.
    """
    from birthmark_sma.authority.audit_chain.checkpoint import ORIGIN, KeptNote, parse, text_of

    try:
        before, *texts = path.read_text(encoding="utf-8").split(f"{ORIGIN}\n")
        if before.strip() or not texts:
            raise ValueError("it does not begin with a checkpoint")
        notes = [f"{ORIGIN}\n{text.rstrip()}\n" for text in texts]
        # The base64 of each signature ends with its padding.
        whole = [each for each in notes if text_of(each) != "\n" and each.endswith("=\n")]
        if len(whole) < len(notes):
            cut_off = counted(len(notes) - len(whole), "checkpoint")
            print_stderr(f"{path}: {cut_off} cut off, and left out.")
        if not whole:
            raise ValueError("all are cut off")
        for note in whole:
            yield KeptNote(parse(text_of(note)).number, note)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no checkpoints: {error}. Give a file with the output of"
            " `sma audit checkpoints`."
        ) from None


def _print_result(
    named: "list[Finding]", number: int, done: "Verified", key: str, *, as_json: bool
) -> None:
    from dataclasses import asdict

    from birthmark_sma.runtime.redaction import printable

    if as_json:
        findings = [each._asdict() for each in named]
        print_json({"findings": findings, "number": number, "public_key": key, **asdict(done)})
        return
    for each in named:
        detail = f" ({each.detail})" if each.detail else ""
        # Whoever forged a name must not write lines of this output, or move the cursor.
        print_line(printable(f"{each.fault}: {each.what}{detail}"))
    if number > len(named):
        print_line(f"and {number - len(named):,} more")
    verified = (
        f"{counted(done.rows, 'audit row')} and {counted(done.acts, 'act')} in"
        f" {counted(done.batches, 'batch', 'batches')}, {counted(done.checkpoints, 'checkpoint')}"
    )
    if done.pruned_rows:
        verified += f"; retention deleted {counted(done.pruned_rows, 'row')} of these batches"
    print_line(f"Verified {verified}.")
    unsigned = counted(done.unsigned_batches, "batch", "batches")
    if done.signed_until is None:
        print_line(f"No checkpoint has signed {unsigned}.")
    else:
        print_line(f"Signed until {done.signed_until:%Y-%m-%d %H:%M:%S} UTC, except {unsigned}.")
    print_line(f"Public key: {key}" if key else "No server has made a key for checkpoints yet.")
    print_line(
        f"{counted(number, 'finding')}: somebody changed the trail."
        if number
        else "All is as it was written."
    )
