"""`sma validate`: validate one camera token and print the reason, which the API never returns.

The command runs the same validation as the server and adds a row to the audit log.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands.init import require_sqlite_file
from birthmark_sma.cli.options import DatabaseUrl, DataDir, Json, KekCommand, KekFile, settings_from
from birthmark_sma.cli.output import print_fields, print_json, waiting

if TYPE_CHECKING:
    from birthmark_sma.protocol.camera_token import CameraToken


def validate(
    camera_token: Annotated[
        Path, typer.Argument(help="A JSON file as the API takes it; - reads standard input.")
    ],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    as_json: Json = False,
) -> None:
    """Validate a camera token, and say why.

    The attempt goes into the audit trail like any other. Exits with 0 for PASS, 1 for FAIL.
    """
    from birthmark_sma.authority.access.caller import Caller
    from birthmark_sma.authority.authority import open_authority
    from birthmark_sma.protocol.verdict import Verdict
    from birthmark_sma.web.api.models import rfc3339

    settings = settings_from(
        data_dir=data_dir, database_url=database_url, kek_file=kek_file, kek_command=kek_command
    )
    require_sqlite_file(settings)
    token = _parse(_read(camera_token))
    with waiting("Opening the authority"):
        authority = open_authority(settings)
    try:
        validation = authority.validator.submit(token, Caller(None)).result()
    finally:
        authority.close()
    told = {
        "validation_result": validation.verdict.value,
        "reason": validation.reason.value,
        "device_serial": validation.device_serial,
        "device_family": validation.device_family,
        "timestamp": rfc3339(validation.validated_at),
    }
    if as_json:
        print_json(told)
    else:
        passed = validation.verdict is Verdict.PASS
        colour = typer.colors.GREEN if passed else typer.colors.RED
        told["validation_result"] = typer.style(validation.verdict.value, fg=colour, bold=True)
        print_fields([(name.replace("_", " "), value or "-") for name, value in told.items()])
    if validation.verdict is not Verdict.PASS:
        raise typer.Exit(exit_codes.FAILED)


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from None


def _parse(content: bytes) -> "CameraToken":
    from birthmark_sma.errors import MalformedCameraTokenError
    from birthmark_sma.web.api.models import ValidateNucRequest
    from birthmark_sma.web.middleware.request_body import parse
    from birthmark_sma.web.problems import InvalidRequestError

    try:
        return parse(content, ValidateNucRequest).camera_token()
    except InvalidRequestError as error:
        raise MalformedCameraTokenError(f"The camera token is malformed: {error}.") from None
