"""`sma backup` and `sma restore`: parse the options, show progress and print the outcome.

The work is in `authority/operations/backup.py` and `restore.py`.
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import require_sqlite_file
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import Progressed, print_fields, print_json, print_line, progress_bar
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from birthmark_sma.authority.operations.backup_manifest import Manifest
    from birthmark_sma.config import Settings

_PASSPHRASE_FILE = "ca-password"  # noqa: S105  a file name


def backup(
    settings: "Settings",
    target: Annotated[
        Path | None, Argument(help="A new directory for the backup. Default: ./sma-backup-<time>")
    ] = None,
    with_secrets: Annotated[
        bool,
        Option(
            "--with-secrets",
            help="Include the generated passphrase and the root's key file. Such a backup opens"
            " without any other secret, so protect it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Back up the database. Servers may run meanwhile.

    For PostgreSQL, pg_dump must be on PATH, in the server's version or a newer one.

    The secrets in a backup are wrapped. They can be opened only with CA_PASSWORD, the key file or
    the key command. Keep that secret as long as the backup, but in another place.
    """
    from birthmark_sma.authority.operations.backup import make_backup

    require_sqlite_file(settings)
    place = target or Path(f"sma-backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    made = make_backup(settings, place, _bar, with_secrets=with_secrets)
    if as_json:
        print_json({"backup": str(made.folder)} | made.manifest.model_dump(mode="json"))
        return
    print_line("The backup is complete.\n")
    _print_backup(made.folder, made.manifest)
    print_line()
    print_line(_describe_missing_secret(made.manifest))
    where = "--data-dir" if made.manifest.kind == "sqlite" else "--database-url"
    print_line(f"To test it, restore it elsewhere: sma restore '{place}' {where} SOMEWHERE-EMPTY")


def restore(
    settings: "Settings",
    backup: Annotated[Path, Argument(help="The directory that sma backup created.")],
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty data directory, or an empty PostgreSQL database.

    The command then checks the result: it counts the rows of every table, opens every key table and
    the CA's key, and verifies the certificates of 500 devices.

    Never run two authorities from one backup, because each would provision different devices.
    """
    from birthmark_sma.authority.operations.restore import restore_backup

    manifest, proof = restore_backup(settings, backup, _bar, find_actor())
    if as_json:
        print_json(
            {
                "made_at": manifest.made_at,
                "rows": proof.rows,
                "key_tables_opened": proof.key_tables,
                "devices_verified": proof.devices,
            }
        )
        return
    print_line("The backup is restored and checked.\n")
    _print_backup(backup, manifest)
    print_fields(
        [
            ("counted", f"{counted(proof.rows, 'row')}, as in the manifest"),
            ("opened", f"{counted(proof.key_tables, 'key table')}, and the CA's key"),
            ("verified", f"{counted(proof.devices, 'device certificate')}, up to the root"),
        ]
    )
    print_line("\nNext: sma doctor, then sma serve")


def _bar(what: str, unit: Literal["bytes", "steps"]) -> AbstractContextManager[Progressed]:
    return progress_bar(what, of_bytes=unit == "bytes", transient=True)


def _print_backup(folder: Path, manifest: "Manifest") -> None:
    total = sum(file.size for file in manifest.files.values())
    made, newest = f"{manifest.made_at:%Y-%m-%d %H:%M:%S} UTC", manifest.newest_audit_at
    kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[manifest.kind]
    print_fields(
        [
            ("backup", f"{folder}, {total / 1_000_000:,.1f} MB"),
            ("made", f"{made} by birthmark-sma {manifest.made_by}"),
            ("schema", f"{manifest.schema_revision}, {kind}"),
            ("devices", f"{manifest.rows['registered_devices']:,}"),
            ("audit rows", f"{manifest.rows['validation_history']:,}"),
            ("  the newest", "-" if newest is None else f"{newest:%Y-%m-%d %H:%M:%S} UTC"),
            ("files", "\n".join(manifest.files)),
        ]
    )


def _describe_missing_secret(manifest: "Manifest") -> str:
    if _PASSPHRASE_FILE in manifest.files:
        return "It contains the passphrase, so it opens without another secret. Keep it safe."
    names = {"file": "The key file", "command": "The output of the key command"}
    secret = names.get(manifest.key_encryption_keys[-1].source, "The passphrase")
    return f"{secret} is not in it, but is needed to open it. Keep both, in different places."
