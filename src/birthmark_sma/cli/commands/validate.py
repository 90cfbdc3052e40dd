"""`sma validate`: validate one camera token and print the reason, which the API never returns.

The command runs the same validation as the server and adds a row to the audit log.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.opening import existing_authority, require_sqlite_file
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_fields, print_json
from birthmark_sma.errors import MalformedCameraTokenError

if TYPE_CHECKING:
    from birthmark_sma.config import Settings
    from birthmark_sma.protocol.camera_token import CameraToken


def validate(
    settings: "Settings",
    camera_token: Annotated[
        Path,
        Argument(help="A JSON file with the request body of the API, or - for standard input."),
    ],
    as_json: Json = False,
) -> None:
    """Validate a camera token and print the reason for the verdict.

    The attempt is added to the audit log. The exit code is 0 for PASS and 1 for FAIL.
    """
    from birthmark_sma.authority.access.caller import Caller
    from birthmark_sma.protocol.verdict import Verdict, rfc3339
    from birthmark_sma.web.request_context import new_id

    require_sqlite_file(settings)  # before it waits for standard input
    token = parse_camera_token(read_file(camera_token))
    with existing_authority(settings) as authority:
        request_id = new_id()
        submitted = authority.validator.submit(token, Caller(None), request_id=request_id)
        validation = submitted.result()
    shown = {
        "validation_result": validation.verdict.value,
        "reason": validation.reason.value,
        "device_serial": validation.device_serial,
        "device_family": validation.device_family,
        "timestamp": rfc3339(validation.validated_at),
        "request_id": request_id,
    }
    if as_json:
        print_json(shown)
    else:
        passed = validation.verdict is Verdict.PASS
        colour = typer.colors.GREEN if passed else typer.colors.RED
        shown["validation_result"] = typer.style(validation.verdict.value, fg=colour, bold=True)
        print_fields([(name.replace("_", " "), value or "-") for name, value in shown.items()])
    if validation.verdict is not Verdict.PASS:
        raise typer.Exit(exit_codes.FAILED)


def read_file(path: Path) -> bytes:
    """Return the content of a file, or of standard input for `-`. Raises BadParameter."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from None


def parse_camera_token(content: bytes) -> "CameraToken":
    """Return the camera token in a JSON text. Raises MalformedCameraTokenError."""
    from birthmark_sma.web.api.models.validation import ValidateNucRequest
    from birthmark_sma.web.middleware.request_body import parse
    from birthmark_sma.web.problems import InvalidRequestError

    try:
        return parse(content, ValidateNucRequest).camera_token()
    except InvalidRequestError as error:
        raise MalformedCameraTokenError(f"The camera token is malformed: {error}.") from None
