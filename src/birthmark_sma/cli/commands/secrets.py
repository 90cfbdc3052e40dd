"""`sma secrets`: check and rotate the authority's secrets, and delete old passphrases.

The work is in `authority/kek`. No command prints a secret.
"""

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.commands.doctor import print_findings
from birthmark_sma.cli.opening import existing_database, require_sqlite_file
from birthmark_sma.cli.options import Json, Yes, command
from birthmark_sma.cli.output import (
    confirm,
    print_fields,
    print_json,
    print_line,
    print_stderr,
    progress_bar,
    waiting,
)
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from birthmark_sma.authority.kek.rotation import Rotated
    from birthmark_sma.authority.operations.doctor.secrets import SecretsReport
    from birthmark_sma.config import NewSecret, Settings

app = typer.Typer(no_args_is_help=True, help="Check and rotate the authority's secrets.")


@command(app, "secrets rotate")
def rotate(settings: "Settings", new_secret: "NewSecret", as_json: Json = False) -> None:
    """Wrap all secrets under a new key-encryption key. Servers may run meanwhile.

    The new secret comes from SMA_NEW_CA_PASSWORD, a file or a command. If none is given, the
    command asks for a passphrase on a terminal. If the old passphrase was generated in the data
    directory, a new one is generated there.

    If a rotation was interrupted, run it again with the same new secret. Until then, both the old
    and the new secret open the authority.
    """
    from birthmark_sma.authority.kek.rotation import rotate as rotate_secrets

    require_sqlite_file(settings)
    new = _prompt_if_missing(settings, new_secret)
    # `before` runs after all checks and before the first change, so it never announces a rotation
    # that is then refused.
    with existing_database(settings) as database, progress_bar("Wrapping secrets") as progress:
        rotated = rotate_secrets(
            database,
            settings,
            new,
            progress,
            actor=find_actor(),
            before=lambda: _print_consequences(settings, new),
        )
    if as_json:
        print_json(asdict(rotated))
    else:
        _print_rotated(rotated)
    if rotated.left.total:
        raise typer.Exit(exit_codes.FAILED)


@command(app, "secrets forget-previous")
def forget_previous(settings: "Settings", yes: Yes = False, as_json: Json = False) -> None:
    """Delete the old passphrases that rotations kept for earlier backups.

    Without them, those backups and a root key file that was moved away before cannot be opened. If
    you chose the passphrase yourself, none was kept.
    """
    from birthmark_sma.authority.kek import rotation
    from birthmark_sma.authority.kek.passphrase_file import PassphraseFile

    # Do not ask if there is nothing to delete.
    file = PassphraseFile.of(settings)
    number = len(file.list_previous())
    if number:
        confirm(
            f"Without {file.previous}, no backup from before the last rotation can be opened, nor a"
            " root key file that was moved away before it.",
            "Delete it for ever?",
            "To delete it, add --yes.",
            yes=yes,
        )
    if number:
        with existing_database(settings) as database:
            number = rotation.forget_previous(database, settings, find_actor())
    if as_json:
        print_json({"forgotten": number})
    else:
        print_line(f"Deleted: {file.previous}" if number else "There is no old passphrase.")


@command(app, "secrets check")
def check(settings: "Settings", as_json: Json = False) -> None:
    """Open every wrapped secret, and check every secret file. Nothing is changed.

    The exit code is 1 if there is a fault.
    """
    from birthmark_sma.authority.operations.doctor.secrets import check_secrets

    place = "the environment" if os.environ.get("CA_PASSWORD") else "the settings file"
    with existing_database(settings) as database, waiting("Opening all secrets"):
        report = check_secrets(database, settings, passphrase_from=place)
    problems = [each for each in report.findings if each.is_bad]
    if as_json:
        notes = [each for each in report.findings if each.state.value == "noted"]
        listed = {
            kind: [{"what": f"{each.sentence}.", "do": each.remedy} for each in findings]
            for kind, findings in (("findings", problems), ("notes", notes))
        }
        print_json(asdict(report) | listed | {"ok": not problems})
    else:
        _print_report(report)
    if problems:
        raise typer.Exit(exit_codes.FAILED)


def _prompt_if_missing(settings: "Settings", new: "NewSecret") -> "NewSecret":
    """Return `new`, or prompt for the passphrase if nothing gives a new secret.

    Prompts only if stdin and stderr are terminals.
    """
    from pydantic import SecretStr

    from birthmark_sma.authority.kek.rotation_plan import has_new_secret

    if has_new_secret(settings, new) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return new
    typed = typer.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return type(new)(new_ca_password=SecretStr(typed))


def _print_consequences(settings: "Settings", new: "NewSecret") -> None:
    """Print what happens to the old secret. The rotation calls this before its first change."""
    from birthmark_sma.authority.ca.ceremony import root_key_files
    from birthmark_sma.authority.kek.passphrase_file import PassphraseFile

    print_stderr("Backups from before this rotation can be opened only with the old secret.")
    file = PassphraseFile.in_force(settings)
    by_key = new.new_kek_file is not None or new.new_kek_command is not None
    if file is None or (by_key and new.new_ca_password is None):
        print_stderr("Keep it as long as these backups.")
    else:
        print_stderr(f"The old secret is kept in {file.previous}. sma restore reads it there.")
    if not any(path.exists() for path in root_key_files(settings)):
        print_stderr(
            "The root's key file is not here. It stays encrypted under the old CA_PASSWORD."
        )


def _print_rotated(rotated: "Rotated") -> None:
    if rotated.resumed:
        print_stderr("An interrupted rotation was completed.")
    print_line(f"Key {rotated.kek_id}, from the {rotated.source}, is now used.\n")
    done, left = asdict(rotated.rewrapped), asdict(rotated.left)
    counts = [(_KINDS[kind], f"{done[kind]:>12,}   {left[kind]:>19,}") for kind in _KINDS]
    print_fields([("", "wrapped anew   left under old keys"), *counts])
    print_line()
    print_line(_ROOT_KEY[rotated.root_key.value])
    if rotated.passphrase_file:
        print_line("The new passphrase replaced the old one in the data directory.")
    if not rotated.passphrase_file or rotated.source != "passphrase":
        print_line("Running servers continue. Give them the new secret before their next start.")
    print_line("Next: sma backup")


_KINDS = {
    "key_tables": "key tables",
    "earlier_table_keys": "earlier table keys",
    "first_answers": "first answers",
    "ca_keys": "CA key",
    "nuc_hash_keys": "NUC hash key",
    "audit_keys": "audit key",
}
_ROOT_KEY = {
    "changed": "The root's key file is encrypted under the passphrase that is now used.",
    "not here": "The root's key file is not here. It keeps its passphrase: see"
    " docs/operate/secrets.md.",
    "not wanted": "CA_PASSWORD and the root's key file are unchanged.",
}


def _print_report(report: "SecretsReport") -> None:
    for use in report.keys:
        ca_key = ", the CA key" if use.ca_key else ""
        print_line(
            f"key-encryption key {use.kek_id}, from the {use.source}, since {use.created_at}\n"
            f"  wraps {counted(use.key_tables, 'key table')},"
            f" {counted(use.first_answers, 'first answer')}{ca_key}"
        )
    print_line()
    print_fields(list(report.places.items()))
    opened = ", ".join(f"{number:,} {what}" for what, number in report.opened.items())
    print_line(f"\nOpened: {opened}.\n")
    print_findings([each for each in report.findings if each.state.value != "well"])
