"""`sma provision`: provision one device and write its files, without the HTTP API.

`commands/device_files.py` writes the files, so that a run can be repeated after a crash.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import existing_authority
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_fields, print_json, print_line

if TYPE_CHECKING:
    from birthmark_sma.authority.authority import Authority
    from birthmark_sma.config import Settings

_ABOUT = ("device_serial", "provisioning_id", "table_assignments")
"""The fields of a device that are printed. None is a secret."""


def provision(
    settings: "Settings",
    device_serial: Annotated[str, Argument(help="1 to 64 printable characters.")],
    output_dir: Annotated[
        Path | None,
        Option(help="The directory for the files. Default: provisioned_devices/<serial>"),
    ] = None,
    family: Annotated[str, Option(help="The kind of device.")] = "Raspberry Pi",
    as_json: Json = False,
) -> None:
    """Provision one device and write its files.

    The files hold the device's secrets: private key, table keys and NUC hash. Only their owner can
    read them. If a run was interrupted, run the command again; a finished run is not repeated. The
    authority must exist: sma init.
    """
    from birthmark_sma.cli.commands import device_files
    from birthmark_sma.pki.names import check_device_serial
    from birthmark_sma.protocol.verdict import rfc3339

    check_device_serial(device_serial)
    target = output_dir or Path("provisioned_devices") / _directory_name(device_serial)
    # Open the authority before `begin` writes a key: wrong settings then leave no files behind.
    with existing_authority(settings) as authority:
        finished = device_files.find_finished(target, device_serial)
        if finished is not None and _is_registered(authority, finished):
            _print_device(finished, target, "is provisioned already. Nothing was changed", as_json)
            return
        pending = device_files.begin(_absolute(target))
        provisioned = device_files.register(
            authority.provisioner,
            pending,
            device_serial=device_serial,
            device_family=family,
            actor=find_actor(),
        )
    data = {
        "device_serial": device_serial,
        "provisioning_id": provisioned.provisioning_id,
        "table_assignments": list(provisioned.table_assignments),
        "device_family": family,
        "nuc_hash": provisioned.simulated_nuc_hash,
        "master_keys": provisioned.table_keys,
        "provisioned_at": rfc3339(provisioned.provisioned_at),
        "manufacturer_id": settings.manufacturer_id,
    }
    device_files.finish(pending, provisioned, data)
    _print_device(data, target, "is provisioned", as_json)


def _is_registered(authority: "Authority", data: Mapping[str, Any]) -> bool:
    """Return whether these files are those of a device of this authority, and not of another."""
    from birthmark_sma.authority.devices.store import find_device

    with authority.database.read() as connection:
        device = find_device(connection, data["device_serial"])
    return device is not None and device.device_certificate == data["device_certificate"]


def _print_device(data: Mapping[str, Any], target: Path, state: str, as_json: bool) -> None:
    if as_json:
        print_json({name: data[name] for name in _ABOUT} | {"output_dir": str(target)})
        return
    print_line(f"{data['device_serial']} {state}.\n")
    print_fields(
        [
            ("tables", ", ".join(map(str, data["table_assignments"]))),
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
