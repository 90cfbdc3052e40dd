"""`sma move`: take an authority from SQLite to PostgreSQL, and print the proof; or undo it.

The work is in `authority/operations/moving/`.
"""

from contextlib import AbstractContextManager
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.options import Json, warn_of_password
from birthmark_sma.cli.output import (
    Progressed,
    confirm,
    print_fields,
    print_json,
    print_line,
    print_stderr,
    print_table,
    progress_bar,
)
from birthmark_sma.counts import counted
from birthmark_sma.errors import BirthmarkError, ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.authority.operations.moving.move import Moved
    from birthmark_sma.config import Settings

_DIGITS = 16  # of a digest


def move(
    settings: "Settings",
    to: Annotated[
        str | None,
        Option(help="The new database, a PostgreSQL URL. Default: DATABASE_URL, if it is one."),
    ] = None,
    undo: Annotated[
        bool, Option("--undo", help="Give the move up: use SQLite as it was when the move began.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Undo without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Move an authority from SQLite to an empty PostgreSQL database.

    Stop the server first. If a run was interrupted, type the same command again: it goes on where
    it ended. At the end the command compares every row, opens every key table and the CA's key,
    and verifies the certificates of 500 devices. Then SQLite's file is marked as moved, and no
    command opens it any more.
    """
    from birthmark_sma.authority.operations.moving.move import move_authority

    if undo:
        _undo(settings, yes=yes, as_json=as_json)
        return
    old, new = _choose_databases(settings, to)
    _require_file(old)
    has_begun: list[None] = []
    try:
        moved = move_authority(old, new, _bar, find_actor(), lambda: has_begun.append(None))
    except (BirthmarkError, KeyboardInterrupt):
        if has_begun:
            print_stderr(
                "The move is not finished, and nothing is lost. To go on, type the same command"
                " again. To give it up, drop the new database, and type: sma move --undo"
            )
        raise
    if as_json:
        print_json(_as_json(moved))
    else:
        _print_moved(old, moved)


def _choose_databases(settings: "Settings", to: str | None) -> tuple["Settings", "Settings"]:
    """Return the settings with the old and the new database. Raises ConfigurationError."""
    if to is None and settings.uses_sqlite:
        raise ConfigurationError(
            "The new database is not named. Type sma move --to postgresql://USER@HOST/DATABASE, or"
            " set DATABASE_URL to it"
        )
    if to is None:
        return settings.model_copy(update={"database_url": None}), settings
    from pydantic import SecretStr

    warn_of_password("--to", to)
    new = settings.model_copy(update={"database_url": SecretStr(to)})
    if new.uses_sqlite:
        raise ConfigurationError("sma move goes to PostgreSQL only: --to postgresql://...")
    if not settings.uses_sqlite:
        raise ConfigurationError(
            "DATABASE_URL is PostgreSQL already, and sma move takes an authority from SQLite. Unset"
            " DATABASE_URL, or leave out --to"
        )
    return settings, new


def _require_file(old: "Settings") -> None:
    if old.sqlite_file is None or not old.sqlite_file.exists():
        raise ConfigurationError(
            f"{old.sqlite_file} does not exist, so there is no authority on SQLite to move. Name"
            " its directory with --data-dir"
        )


def _undo(settings: "Settings", *, yes: bool, as_json: bool) -> None:
    from birthmark_sma.authority.operations.moving.move import undo_move

    old = settings if settings.uses_sqlite else settings.model_copy(update={"database_url": None})
    _require_file(old)
    confirm(
        "What happened in the new database is not in SQLite, and a server that still uses it would"
        " be a second authority with the same identity.",
        "Is the new database dropped?",
        "Drop the new database, then add --yes.",
        yes=yes,
    )
    mark = undo_move(old, find_actor())
    if as_json:
        print_json({"undone": True, "moving_to": mark.moving_to, "since": mark.moving_since})
        return
    print_line(f"The move to {mark.moving_to} is undone. SQLite is in use again.")
    print_line("Next: unset DATABASE_URL, then sma doctor, then sma serve")


def _bar(what: str, unit: Literal["bytes", "steps"]) -> AbstractContextManager[Progressed]:
    return progress_bar(what, of_bytes=unit == "bytes", transient=True)


def _as_json(moved: "Moved") -> dict[str, Any]:
    proof = moved.proof
    return {
        "authority_id": moved.authority_id,
        "moved_to": moved.mark.moving_to,
        "began_at": moved.mark.moving_since,
        "moved_at": moved.mark.moved_at,
        "rows_copied": moved.copied,
        "seconds": round(moved.seconds, 3),
        "proof": None
        if proof is None
        else {
            "rows": proof.rows,
            "key_tables_opened": proof.key_tables,
            "devices_verified": proof.devices,
            "chains_verified": proof.chains,
            "trail_findings": proof.trail_findings,
            "tables": [
                {"table": each.table, "rows": each.rows, "digest": each.digest}
                for each in proof.tables
            ],
        },
    }


def _print_moved(old: "Settings", moved: "Moved") -> None:
    print_line("The authority is moved.\n")
    proof = moved.proof
    if proof is None:
        print_line("An earlier run has copied and proved everything.")
    else:
        rows = [(each.table, f"{each.rows:,}", each.digest[:_DIGITS]) for each in proof.tables]
        print_table(("table", "rows", "digest"), rows, numbers={"rows"})
        print_line()
        speed = moved.copied / moved.seconds
        print_fields(
            [
                ("copied", f"{moved.copied:,} rows in {moved.seconds:,.1f} s: {speed:,.0f} rows/s"),
                ("compared", f"{counted(proof.rows, 'row')}, equal in both databases"),
                ("opened", f"{counted(proof.key_tables, 'key table')}, and the CA's key"),
                ("verified", f"{counted(proof.devices, 'device certificate')}, up to the root"),
                ("", f"{counted(proof.chains, 'chain')} of the audit log and the acts"),
            ]
        )
        if proof.trail_findings:
            print_stderr(
                f"WARNING: somebody changed the audit log or the acts before the move:"
                f" {counted(proof.trail_findings, 'finding')}. Type: sma audit verify"
            )
    print_line()
    for line in _next_steps(old, moved):
        print_line(line)


def _next_steps(old: "Settings", moved: "Moved") -> list[str]:
    """Return the commands that come next."""
    from birthmark_sma.authority.kek.passphrase_file import PASSPHRASE_FILE, PassphraseFile

    lines = [f"The authority is in {moved.mark.moving_to}. Next:"]
    lines.append("  export DATABASE_URL=...  # the new database")
    if PassphraseFile.in_force(old) is not None:
        file = old.data_dir / PASSPHRASE_FILE
        lines.append(f'  export CA_PASSWORD="$(cat {quote(str(file))})"')
    lines += ["  sma doctor", "  sma serve"]
    lines.append(
        f"Keep {old.sqlite_file} until the first backup of the new database. No command opens it."
    )
    return lines
