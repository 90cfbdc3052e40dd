"""The options that the commands of `sma simulate` share, and the `Site` that results from them.

Checks of files and directories run before a simulation starts, so that a run is never wasted.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.simulation.target import Site

ENROLMENT_KEY = "BIRTHMARK_ENROLMENT_KEY"
VALIDATE_KEYS = "BIRTHMARK_VALIDATE_KEYS"

Url = Annotated[str, typer.Argument(help="The authority, such as http://127.0.0.1:8000.")]
CaFile = Annotated[
    Path | None,
    typer.Option(help="The CA that the authority's TLS certificate comes from; else the system's."),
]
EnrolmentKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with an access key of scope provision. [BIRTHMARK_ENROLMENT_KEY, the key]"
    ),
]
ValidateKeyFile = Annotated[
    list[Path] | None,
    typer.Option(
        help="A file with an access key of scope validate; once for all aggregation servers, or"
        " once for each. [BIRTHMARK_VALIDATE_KEYS, the keys, with spaces]"
    ),
]
RootFingerprint = Annotated[
    str | None, typer.Option(help="SHA-256 of the authority's root certificate, to pin it.")
]
KeysPerTable = Annotated[
    int | None, typer.Option(min=1, help="Keys in each table, unless 1,000 or a prototype's 100.")
]
ReportFile = Annotated[Path | None, typer.Option(help="Write the report there, as JSON.")]
PictureFile = Annotated[Path | None, typer.Option(help="Draw the report there, as SVG.")]
Directory = Annotated[
    Path | None,
    typer.Option(
        help="An empty directory for what cameras keep, to stay; else it is in memory, where"
        " syncing costs nothing, and gone at the end."
    ),
]
Settle = Annotated[
    float,
    typer.Option(
        min=0,
        max=3600,
        help="For so many seconds pictures may be late; the last verdicts have as long again.",
    ),
]


def make_target(
    url: str,
    *,
    aggregators: int,
    ca_file: Path | None = None,
    enrolment_key_file: Path | None = None,
    validate_key_file: Sequence[Path] | None = None,
    root_fingerprint: str | None = None,
    keys_per_table: int | None = None,
    report_command: str | None = None,
) -> "Site":
    """Return the site from flags, else from the environment.

    Raises ConfigurationError for keys or a --report-command that cannot be used.
    """
    import shlex

    from birthmark_sma.simulation.target import Site

    try:
        command = tuple(shlex.split(report_command or ""))
    except ValueError:
        raise ConfigurationError("--report-command has a quote that does not end.") from None
    if enrolment_key_file is not None:
        enrolment_key: str | None = _key_in(enrolment_key_file)
    else:
        enrolment_key = os.environ.get(ENROLMENT_KEY) or None
    return Site(
        url,
        enrolment_key=enrolment_key,
        validate_keys=validate_keys(validate_key_file, aggregators),
        ca_file=ca_file,
        root_fingerprint=root_fingerprint,
        keys_per_table=keys_per_table,
        report_command=command,
    )


def validate_keys(files: Sequence[Path] | None, aggregators: int) -> tuple[str, ...]:
    """Return one access key for each aggregation server, or an empty tuple if none is given.

    A single key serves all of them. Raises ConfigurationError for any other number of keys.
    """
    told = os.environ.get(VALIDATE_KEYS, "").split()
    keys = [_key_in(each) for each in files] if files else told
    if len(keys) == 1:
        keys *= aggregators
    if keys and len(keys) != aggregators:
        raise ConfigurationError(
            f"There are {len(keys)} keys for {aggregators} aggregation servers: give one for each,"
            " or one for all."
        )
    return tuple(keys)


def check_writable(*files: Path | None) -> None:
    """Raise ConfigurationError if a file cannot be written. None is allowed and ignored."""
    for each in files:
        if each is not None and (each.is_dir() or not os.access(each.parent, os.W_OK)):
            raise ConfigurationError(f"{each} cannot be written.")


def check_empty(directory: Path | None) -> None:
    """Raise ConfigurationError if the directory exists and is not empty."""
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise ConfigurationError(f"{directory} is not empty: each run has a directory of its own.")


def _key_in(path: Path) -> str:
    from birthmark_sma.runtime.secret_files import read_private_file

    key = read_private_file(path).decode("utf-8", "replace").strip()
    # Visible ASCII only, because the key goes into an HTTP header.
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise ConfigurationError(f"{path} holds no access key.")
    return key
