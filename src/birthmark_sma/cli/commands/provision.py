"""`sma provision`: provision one device and write its files, without the HTTP API.

`commands/device_files.py` writes the files, so that a run can be repeated after a crash.
"""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from birthmark_sma.cli.commands.init import require_sqlite_file
from birthmark_sma.cli.options import (
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    ManufacturerId,
    Prototype,
    PublicUrl,
    settings_from,
)
from birthmark_sma.cli.output import print_fields, print_json, print_line, waiting


def provision(
    device_serial: Annotated[str, typer.Argument(help="1 to 64 printable characters.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Where its files go. Default: provisioned_devices/<serial>"),
    ] = None,
    family: Annotated[str, typer.Option(help="What kind of device it is.")] = "Raspberry Pi",
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    prototype: Prototype = False,
    manufacturer_id: ManufacturerId = None,
    public_url: PublicUrl = None,
    as_json: Json = False,
) -> None:
    """Provision one device, into files.

    They hold its key, certificate, table keys and NUC hash: the device's secrets, readable by their
    owner alone. A run that was cut off is simply run again. The authority must be there: sma init.
    """
    from birthmark_sma.authority.authority import open_authority
    from birthmark_sma.authority.provisioning.service import ProvisioningRequest
    from birthmark_sma.cli.commands import device_files
    from birthmark_sma.errors import ConflictError, PkiError
    from birthmark_sma.web.api.models import rfc3339

    settings = settings_from(
        prototype=prototype,
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        manufacturer_id=manufacturer_id,
        public_url=public_url,
    )
    require_sqlite_file(settings)
    target = output_dir or Path("provisioned_devices") / _directory_name(device_serial)
    # Open the authority before `begin` writes a key: wrong settings then leave no files behind.
    with waiting("Opening the authority"):
        authority = open_authority(settings)
    try:
        pending = device_files.begin(_absolute(target))
        request = ProvisioningRequest(
            device_serial=device_serial,
            device_family=family,
            device_public_key=pending.public_key,
            idempotency_key=pending.idempotency_key,
        )
        try:
            provisioned = authority.provisioner.provision_device(request)
        except (ConflictError, PkiError):
            # Refused, so not registered. After any other error the device may be registered, and
            # its key must stay for the next run.
            device_files.abandon(pending)
            raise
    finally:
        authority.close()
    device_files.finish(
        pending,
        provisioned,
        {
            "device_serial": device_serial,
            "device_family": family,
            "nuc_hash": provisioned.simulated_nuc_hash,
            "table_assignments": list(provisioned.table_assignments),
            "master_keys": provisioned.table_keys,
            "provisioned_at": rfc3339(provisioned.provisioned_at),
            "provisioning_id": provisioned.provisioning_id,
            "manufacturer_id": settings.manufacturer_id,
        },
    )
    if as_json:
        print_json(
            {
                "device_serial": device_serial,
                "provisioning_id": provisioned.provisioning_id,
                "table_assignments": list(provisioned.table_assignments),
                "output_dir": str(target),
            }
        )
        return
    print_line(f"{device_serial} is provisioned.\n")
    print_fields(
        [
            ("tables", ", ".join(map(str, provisioned.table_assignments))),
            ("files", "\n".join(str(file) for file in sorted(target.iterdir()))),
        ]
    )


def _directory_name(device_serial: str) -> str:
    """Return a name for one directory. No serial leads elsewhere, not even `.`, `..` or a slash."""
    name = quote(device_serial, safe=" ")
    return name.replace(".", "%2E") if not name.strip(".") else name


def _absolute(path: Path) -> Path:
    """Return the absolute path without `.` and `..`, so that its last part is a real name."""
    return Path(os.path.normpath(path.absolute()))
