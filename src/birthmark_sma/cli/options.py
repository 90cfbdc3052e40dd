"""The options that several commands share, and the settings that result from them.

The help texts are public: the frozen surface of the command line lists them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from birthmark_sma.cli.output import print_stderr

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where SQLite and the generated secrets live. [SMA_DATA_DIR]"),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL instead of SQLite. A URL with a password belongs into the environment."
        " [DATABASE_URL]"
    ),
]
KekFile = Annotated[
    Path | None,
    typer.Option(
        help="A file with the key-encryption key; else CA_PASSWORD gives it. [SMA_KEK_FILE]"
    ),
]
KekCommand = Annotated[
    str | None,
    typer.Option(help="A command that writes that key to stdout, for a KMS. [SMA_KEK_COMMAND]"),
]
Prototype = Annotated[
    bool,
    typer.Option(
        "--prototype",
        help="The prototype profile: 10 tables of 100 keys, port 5001, data in ./sma-prototype.",
    ),
]
Published = Annotated[
    bool,
    typer.Option(
        "--published",
        help="250 tables of 1,000 keys, as the Birthmark project's published server expects.",
    ),
]
Sandbox = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        help="An authority for integration tests, which fails on demand and forgets after an hour;"
        " data in ./sma-sandbox. Never together with what is for earnest.",
    ),
]
ManufacturerId = Annotated[
    str | None, typer.Option(help="What stands in every verdict. [SMA_MANUFACTURER_ID]")
]
PublicUrl = Annotated[
    str | None,
    typer.Option(
        help="The URL that devices know; certificates then name the CRL. [SMA_PUBLIC_URL]"
    ),
]
CaKeyType = Annotated[
    str | None,
    typer.Option(help="rsa-4096, ec-p384 or ec-p256, for root and intermediate. [SMA_CA_KEY_TYPE]"),
]
Tables = Annotated[
    int | None, typer.Option(help="How many key tables; fixed for ever. [SMA_TABLES]")
]
KeysPerTable = Annotated[
    int | None, typer.Option(help="Keys in each; fixed for ever. [SMA_KEYS_PER_TABLE]")
]
RootKeyFile = Annotated[
    Path | None, typer.Option(help="Where the root's encrypted key goes. [SMA_ROOT_KEY_FILE]")
]
AuditRetentionDays = Annotated[
    int | None,
    typer.Option(
        help="Drop audit rows that are older than so many whole days; else all are kept."
        " [SMA_AUDIT_RETENTION_DAYS]"
    ),
]
Abuse = Annotated[
    str | None,
    typer.Option(
        help="What happens to devices far above their usual rate: off, shadow, flag or suspend."
        " [SMA_ABUSE, flag]"
    ),
]
AbuseFactor = Annotated[
    float | None,
    typer.Option(help="How many times its usual a device may make. [SMA_ABUSE_FACTOR, 10]"),
]
AbuseLeast = Annotated[
    int | None,
    typer.Option(help="How many pictures a day are never too many. [SMA_ABUSE_LEAST, 500]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def settings_from(*, prototype: bool = False, sandbox: bool = False, **flags: Any) -> "Settings":
    """Return the settings from flags, environment and settings file, in this order of precedence.

    A flag with the value None was not given. Print a warning if --database-url holds a password,
    because other users of the machine can read the arguments of a process.
    """
    from birthmark_sma.config import load_settings

    if holds_password(flags.get("database_url")):
        print_stderr(
            "WARNING: everybody on this machine can read the password in --database-url. Set"
            " DATABASE_URL instead."
        )
    return load_settings(flags, os.environ, prototype=prototype, sandbox=sandbox)


def holds_password(database_url: str | None) -> bool:
    """Return whether a URL, or a string of libpq parameters, holds a password."""
    if database_url is None:
        return False
    try:
        return urlsplit(database_url).password is not None or "password=" in database_url
    except ValueError:
        return False
