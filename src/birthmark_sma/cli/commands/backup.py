"""`sma backup` and `sma restore`: parse the options, show progress and print the outcome.

The work is in `authority/operations/backup.py` and `restore.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

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
from birthmark_sma.cli.output import Progressed, print_fields, print_json, print_line, progress_bar

if TYPE_CHECKING:
    from birthmark_sma.authority.operations.backup_manifest import Manifest
    from birthmark_sma.authority.operations.restore_proof import Proof

_PASSPHRASE_FILE = "ca-password"  # noqa: S105  a file name


def backup(
    target: Annotated[
        Path | None,
        typer.Argument(help="A new directory. Default: sma-backup-<time> in this one."),
    ] = None,
    with_secrets: Annotated[
        bool,
        typer.Option(
            "--with-secrets",
            help="Also the passphrase that was made in the data directory, and the root's key file."
            " Whoever has such a backup has everything.",
        ),
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Copy the database as it is at this moment, while the service runs.

    PostgreSQL is copied by its own pg_dump, which has to be on PATH, as new as the server or newer.

    Everything secret in a backup is wrapped: it opens with CA_PASSWORD, the key file or the command
    alone, so keep those as long as the backup, and apart from it.
    """
    from birthmark_sma.authority.operations.backup import make_backup

    settings = settings_from(
        data_dir=data_dir, database_url=database_url, root_key_file=root_key_file
    )
    require_sqlite_file(settings)
    place = target or Path(f"sma-backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    made = make_backup(settings, place, _bar, with_secrets=with_secrets)
    if as_json:
        print_json({"backup": str(made.folder)} | made.manifest.model_dump(mode="json"))
        return
    print_line("The backup is made.\n")
    _show(made.folder, made.manifest)
    print_line()
    print_line(_what_is_not_in_it(made.manifest))
    where = "--data-dir" if made.manifest.kind == "sqlite" else "--database-url"
    print_line(f"To prove it, restore it elsewhere: sma restore '{place}' {where} SOMEWHERE-EMPTY")


def restore(
    backup: Annotated[Path, typer.Argument(help="The directory that sma backup made.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty data directory, or an empty PostgreSQL database.

    It proves itself: every table is counted and compared with the manifest, every key table and the
    CA's key are opened, and the certificates of 500 devices are verified up to the root.

    Never run two authorities from one backup: each would provision devices of its own.
    """
    from birthmark_sma.authority.operations.restore import restore_backup

    settings = settings_from(
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        root_key_file=root_key_file,
    )
    manifest, proof = restore_backup(settings, backup, _bar)
    if as_json:
        print_json(
            {
                "made_at": manifest.made_at.isoformat().replace("+00:00", "Z"),
                "rows": proof.rows,
                "key_tables_opened": proof.key_tables,
                "devices_verified": proof.devices,
            }
        )
        return
    print_line("The backup is restored, and has proven itself.\n")
    _show(backup, manifest)
    _tell_proof(proof)
    print_line("\nNext: sma doctor, then sma serve")


@contextmanager
def _bar(what: str, unit: Literal["bytes", "steps"]) -> Iterator[Progressed]:
    with progress_bar(what, of_bytes=unit == "bytes", transient=True) as progress:
        yield progress


def _show(folder: Path, manifest: "Manifest") -> None:
    total = sum(file.size for file in manifest.files.values())
    newest = manifest.newest_audit_at
    print_fields(
        [
            ("backup", f"{folder}, {total / 1_000_000:,.1f} MB"),
            (
                "made",
                f"{manifest.made_at:%Y-%m-%d %H:%M:%S} UTC by birthmark-sma {manifest.made_by}",
            ),
            ("schema", f"{manifest.schema_revision}, {_KINDS[manifest.kind]}"),
            ("devices", f"{manifest.rows['registered_devices']:,}"),
            ("audit rows", f"{manifest.rows['validation_history']:,}"),
            ("  the newest", "-" if newest is None else f"{newest:%Y-%m-%d %H:%M:%S} UTC"),
            ("files", "\n".join(manifest.files)),
        ]
    )


def _tell_proof(proof: "Proof") -> None:
    print_fields(
        [
            ("counted", f"{proof.rows:,} rows, as the manifest says"),
            ("opened", f"{proof.key_tables:,} key tables, and the CA's key"),
            ("verified", f"{proof.devices:,} devices' certificates, up to the root"),
        ]
    )


def _what_is_not_in_it(manifest: "Manifest") -> str:
    if _PASSPHRASE_FILE in manifest.files:
        return "It holds the passphrase: whoever has it has everything. Keep it locked away."
    source = manifest.key_encryption_keys[-1].source
    secret = {"file": "The key file", "command": "What the command gives"}.get(
        source, "The passphrase"
    )
    return f"{secret} is not in it, and without that it does not open: keep both, apart."


_KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
