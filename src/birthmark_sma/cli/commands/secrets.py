"""`sma secrets`: check and rotate the authority's secrets, and delete old passphrases.

The work is in `authority/kek`. No command prints a secret.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands.init import require_sqlite_file
from birthmark_sma.cli.options import (
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    RootKeyFile,
    settings_from,
)
from birthmark_sma.cli.output import (
    print_fields,
    print_json,
    print_line,
    print_stderr,
    progress_bar,
    waiting,
)

if TYPE_CHECKING:
    from birthmark_sma.authority.kek.rotation import Rotated
    from birthmark_sma.authority.operations.doctor.findings import Finding
    from birthmark_sma.authority.operations.doctor.secrets import SecretsReport
    from birthmark_sma.config import NewSecret, Settings

app = typer.Typer(no_args_is_help=True, help="Check and rotate the authority's secrets.")


@app.command()
def rotate(
    new_kek_file: Annotated[
        Path | None,
        typer.Option(help="Take the new key from this file. [SMA_NEW_KEK_FILE]"),
    ] = None,
    new_kek_command: Annotated[
        str | None,
        typer.Option(help="Take the new key from this command's stdout. [SMA_NEW_KEK_COMMAND]"),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Wrap everything anew under a new key-encryption key, while servers run.

    The new secret comes from SMA_NEW_CA_PASSWORD, a file or a command, or is asked for. A
    passphrase that was made in the data directory is replaced by another that is made there.

    A rotation that was cut off is run again with the same new secret. Until then the old secret and
    the new one both open the authority.
    """
    from birthmark_sma.authority.authority import opened_database
    from birthmark_sma.authority.kek.rotation import rotate as rotate_secrets
    from birthmark_sma.config import load_new_secret

    settings = settings_from(
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        root_key_file=root_key_file,
    )
    require_sqlite_file(settings)
    new = load_new_secret(
        {"new_kek_file": new_kek_file, "new_kek_command": new_kek_command}, os.environ
    )
    new = _asked_for(settings, new)
    # `before` runs after all checks and before the first change, so it never announces a rotation
    # that is then refused.
    with opened_database(settings) as database, progress_bar("Wrapping anew") as progress:
        rotated = rotate_secrets(
            database, settings, new, progress, before=lambda: _tell_beforehand(settings, new)
        )
    if as_json:
        print_json(asdict(rotated))
    else:
        _tell_rotated(rotated)
    if rotated.left.total:
        raise typer.Exit(exit_codes.FAILED)


@app.command()
def forget_previous(
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete the passphrases from before rotations, which were kept for the backups of then.

    Those backups never open again, nor does a root key file that was moved away then. Where you
    gave the passphrase yourself, none was kept.
    """
    from birthmark_sma.authority.kek.passphrase_file import PassphraseFile

    settings = settings_from(data_dir=data_dir)
    # Count first: nothing is asked if there is nothing to delete.
    file = PassphraseFile.of(settings)
    number = len(file.list_previous())
    if number and not yes:
        what = (
            f"Without {file.previous}, no backup from before the last rotation opens again, nor a"
            " root key file that was moved away before it."
        )
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"{what} Say --yes.")
        typer.confirm(f"{what} Delete it, for good?", abort=True, err=True)
    file.forget_previous()
    if as_json:
        print_json({"forgotten": number})
    else:
        print_line(f"Deleted: {file.previous}" if number else "There is none.")


@app.command()
def check(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Open everything that is wrapped, and look at every file that is secret.

    Changes nothing. Exits with 1 where something is to be put right.
    """
    from birthmark_sma.authority.authority import opened_database
    from birthmark_sma.authority.operations.doctor.secrets import check_secrets

    settings = settings_from(
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        root_key_file=root_key_file,
    )
    require_sqlite_file(settings)
    place = "the environment" if os.environ.get("CA_PASSWORD") else "the settings file"
    with opened_database(settings) as database, waiting("Opening everything"):
        report = check_secrets(database, settings, passphrase_from=place)
    problems = [each for each in report.findings if each.is_bad]
    notes = [each for each in report.findings if each.state.value == "noted"]
    if as_json:
        listed = {"findings": _as_json(problems), "notes": _as_json(notes), "ok": not problems}
        print_json(asdict(report) | listed)
    else:
        _tell_report(report, problems, notes)
    if problems:
        raise typer.Exit(exit_codes.FAILED)


def _asked_for(settings: "Settings", new: "NewSecret") -> "NewSecret":
    """Return `new`, or prompt for the passphrase if nothing gives a new secret.

    Prompts only if stdin and stderr are terminals.
    """
    from pydantic import SecretStr

    from birthmark_sma.authority.kek.rotation_plan import has_new_secret

    if has_new_secret(settings, new) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return new
    typed = typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return type(new)(new_ca_password=SecretStr(typed))


def _tell_beforehand(settings: "Settings", new: "NewSecret") -> None:
    """Print what happens to the old secret. The rotation calls this before its first change."""
    from birthmark_sma.authority.ca.ceremony import root_key_file
    from birthmark_sma.authority.kek.passphrase_file import PassphraseFile

    print_stderr("Backups from before this rotation open with the old secret only.")
    file = PassphraseFile.in_force(settings)
    by_key = new.new_kek_file is not None or new.new_kek_command is not None
    if file is None or (by_key and new.new_ca_password is None):
        print_stderr("Keep it as long as them.")
    else:
        print_stderr(f"It is kept in {file.previous}, where sma restore finds it.")
    if not root_key_file(settings).exists():
        print_stderr(
            "The root's key file is not here: it goes on opening with the old CA_PASSWORD."
        )


def _tell_rotated(rotated: "Rotated") -> None:
    if rotated.resumed:
        print_stderr("A rotation that was cut off has been brought to its end.")
    done, left = rotated.rewrapped, rotated.left
    print_line(f"Key {rotated.kek_id}, from the {rotated.source}, is in force.\n")
    print_fields(
        [
            ("", "wrapped anew   left under old keys"),
            ("key tables", f"{done.key_tables:>12,}   {left.key_tables:>19,}"),
            ("first answers", f"{done.first_answers:>12,}   {left.first_answers:>19,}"),
            ("CA key", f"{done.ca_keys:>12,}   {left.ca_keys:>19,}"),
            ("NUC hash key", f"{done.nuc_hash_keys:>12,}   {left.nuc_hash_keys:>19,}"),
        ]
    )
    print_line()
    print_line(_ROOT_KEY[rotated.root_key.value])
    if rotated.passphrase_file:
        print_line("The new passphrase is in the data directory, in the old one's place.")
    if not rotated.passphrase_file or rotated.source != "passphrase":
        print_line(
            "Servers go on as they run. Give them the new secret before they are started again."
        )
    print_line("Next: sma backup")


_ROOT_KEY = {
    "changed": "The root's key file opens with the passphrase that is in force now.",
    "not here": "The root's key file is not here, and keeps its passphrase: see docs/operator.md.",
    "not wanted": "CA_PASSWORD and the root's key file are as they were.",
}


def _as_json(findings: "list[Finding]") -> list[dict[str, str | None]]:
    return [{"what": f"{each.sentence}.", "do": each.remedy} for each in findings]


def _tell_report(
    report: "SecretsReport", problems: "list[Finding]", notes: "list[Finding]"
) -> None:
    for use in report.keys:
        ca_key = ", the CA key" if use.ca_key else ""
        print_line(
            f"key-encryption key {use.kek_id}, from the {use.source}, since {use.created_at}"
        )
        print_line(
            f"  wraps {use.key_tables:,} key tables, {use.first_answers:,} first answers{ca_key}"
        )
    print_line()
    print_fields(list(report.places.items()))
    print_line()
    opened = ", ".join(f"{number:,} {what}" for what, number in report.opened.items())
    print_line(f"Opened: {opened}.")
    for heading, remarks in (("To know", notes), ("To put right", problems)):
        _tell_remarks(heading, remarks)
    if not problems:
        print_line("\nNothing is to be put right.")


def _tell_remarks(heading: str, remarks: "list[Finding]") -> None:
    if remarks:
        print_line(f"\n{typer.style(heading, bold=True)}")
    for remark in remarks:
        print_line(f"  {remark.sentence}.\n    {remark.remedy}.")
