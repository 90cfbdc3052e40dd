"""`sma devices re-enrol`: allow a device to be provisioned once more under its serial.

`commands/devices.py` registers it. The rules are in `authority/devices/re_enrolments.py`. The
device itself then sends an ordinary provisioning request.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import administration
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import as_argument, print_line, print_object

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
    if cancel:
        with administration(settings) as authority:
            withdrawn = authority.forbid_re_enrolment(device_serial)
        if as_json:
            print_object(withdrawn)
        else:
            print_line(f"{withdrawn.device_serial} has no permission to be re-enrolled.")
        return
    period = parse_duration(for_, "--for", longest=_LONGEST)
    with administration(settings) as authority:
        permission = authority.allow_re_enrolment(device_serial, period)
    if as_json:
        print_object(permission)
        return
    print_line(
        f"{permission.device_serial} may be provisioned once more, until"
        f" {permission.allowed_until:%Y-%m-%d %H:%M} UTC."
    )
    print_line(
        "Provision it under the same serial and family, with a CSR. Until then its present"
        " certificate stays valid; then it is revoked as superseded."
    )
    print_line(f"To undo: sma devices re-enrol --cancel {as_argument(permission.device_serial)}")
