"""`sma devices re-enrol`: allow a device to be provisioned once more under its serial.

`commands/devices.py` registers it. The rules are in `authority/devices/re_enrolments.py`. The
device itself then sends an ordinary provisioning request.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_json, print_line

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

_LONGEST = timedelta(days=90)


def re_enrol(
    settings: "Settings",
    device_serial: Annotated[str, Argument(help="The device's serial, in any case.")],
    for_: Annotated[
        str, Option("--for", help="How long the device may do so: 30m, 12h, 7d; up to 90d.")
    ] = "7d",
    cancel: Annotated[bool, Option("--cancel", help="Withdraw the permission instead.")] = False,
    as_json: Json = False,
) -> None:
    """Allow a device that lost its key or was reinstalled to get a new certificate, once.

    The next provisioning request with this serial then gets a new certificate and a new NUC hash.
    The old certificate is revoked as superseded, and the old NUC hash fails, at that moment and not
    before.
    """
    from birthmark_sma.authority.devices import re_enrolments
    from birthmark_sma.authority.representations.devices import permission_as_json

    if cancel:
        with existing_database(settings) as database:
            known, was_allowed = re_enrolments.cancel(database, device_serial, find_actor())
        if as_json:
            print_json({"device_serial": known, "allowed_until": None})
        elif was_allowed:
            print_line(f"{known} can no longer be re-enrolled.")
        else:
            print_line(f"{known} had no permission to be re-enrolled. Nothing was changed.")
        return
    period = parse_duration(for_, "--for", longest=_LONGEST)
    with existing_database(settings) as database:
        permission = re_enrolments.allow(database, device_serial, period, find_actor())
    if as_json:
        print_json(permission_as_json(permission))
        return
    print_line(
        f"{permission.device_serial} may be provisioned once more, until"
        f" {permission.allowed_until:%Y-%m-%d %H:%M} UTC."
    )
    print_line(
        "Provision it under the same serial and family, with a CSR. Until then its present"
        " certificate stays valid; then it is revoked as superseded."
    )
    print_line(f"To undo: sma devices re-enrol '{permission.device_serial}' --cancel")
