"""`sma init` and `sma migrate`: create an authority, and bring its database to this version.

Other commands use `existing_database` and `require_sqlite_file`, so that none of them creates an
empty database by accident. `sma serve` uses `initialise_on_a_laptop`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from birthmark_sma.cli.options import (
    CaKeyType,
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    KeysPerTable,
    Prototype,
    Published,
    RootKeyFile,
    Sandbox,
    Tables,
    settings_from,
)
from birthmark_sma.cli.output import (
    print_fields,
    print_json,
    print_line,
    print_stderr,
    progress_bar,
    waiting,
)
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.protocol.key_table import PUBLISHED_SIZES

if TYPE_CHECKING:
    from birthmark_sma.authority.ca.ceremony import Ceremony
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database


def init(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    prototype: Prototype = False,
    published: Published = False,
    sandbox: Sandbox = False,
    ca_key_type: CaKeyType = None,
    tables: Tables = None,
    keys_per_table: KeysPerTable = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Found an authority: certificates and key tables.

    Run again, it finishes what was cut off and changes nothing else: it never overwrites. With
    PostgreSQL, set CA_PASSWORD first; with SQLite one is made where none is set.

    Afterwards move the root's key file to a safe place. The server never needs it.
    """
    if published:
        if prototype or tables is not None or keys_per_table is not None:
            raise ConfigurationError(
                "--published fixes the sizes. Leave out --prototype, --tables and --keys-per-table."
            )
        tables, keys_per_table = PUBLISHED_SIZES.tables, PUBLISHED_SIZES.keys_per_table
    settings = settings_from(
        prototype=prototype,
        sandbox=sandbox,
        data_dir=data_dir,
        database_url=database_url,
        kek_file=kek_file,
        kek_command=kek_command,
        ca_key_type=ca_key_type,
        tables=tables,
        keys_per_table=keys_per_table,
        root_key_file=root_key_file,
    )
    held = initialise_with_progress(settings, sandbox=sandbox)
    _strengthen_root_key(settings)  # for an existing authority; a new key is strong already
    if as_json:
        print_json(_as_json(settings, held))
    elif held is None:
        print_line("This authority was founded before; nothing was missing. To see it: sma ca show")
    else:
        _tell(held, sandbox=sandbox)


def initialise_with_progress(settings: "Settings", *, sandbox: bool = False) -> "Ceremony | None":
    """Create the missing parts of the authority, with a progress bar. Return None if none was."""
    from birthmark_sma.authority.authority import initialise

    with progress_bar("Populating key tables") as progress:
        return initialise(settings, progress, sandbox=sandbox)


def initialise_on_a_laptop(settings: "Settings", *, sandbox: bool = False) -> None:
    """Create an authority if there is none, with SQLite and on a loopback address only.

    So `sma serve` works without `sma init` on a laptop. Anywhere else, a forgotten DATABASE_URL
    would create a second authority. There, raise NotInitialisedError for SQLite, and leave
    PostgreSQL to the code that opens the authority.
    """
    from birthmark_sma.authority.authority import check_may_be_created, is_initialised
    from birthmark_sma.http_requests import is_loopback

    if settings.database_url is not None or is_initialised(settings):
        return
    # Behind a trusted proxy the address is loopback, but other machines reach the server.
    if not is_loopback(settings.host) or settings.trusted_proxies:
        require_sqlite_file(settings)
        return
    check_may_be_created(settings)
    what = "a sandbox" if sandbox else "one, with SQLite"
    print_stderr(
        f"There is no authority in {settings.data_dir} yet: creating {what}."
        + ("" if sandbox else " If yours is elsewhere, stop, and set DATABASE_URL or SMA_DATA_DIR.")
    )
    initialise_with_progress(settings, sandbox=sandbox)


def migrate(
    data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """Bring the database to this program's schema.

    Needed once after an upgrade; a server refuses to start before. Wholly or not at all. There is
    no way back: take a backup with the older program first.
    """
    from birthmark_sma.storage.engine import open_database
    from birthmark_sma.storage.migration import migrate as migrate_database

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    require_sqlite_file(settings)
    database = open_database(settings.resolved_database_url)
    try:
        with waiting("Migrating: it happens wholly or not at all"):
            before, after = migrate_database(database)
    finally:
        database.close()
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        print_line(f"The database is at schema {after} already.")
    else:
        print_line(f"The database went from schema {before or 'none'} to {after}.")


@contextmanager
def existing_database(data_dir: Path | None, database_url: str | None) -> Iterator["Database"]:
    """Open the database that flags, environment and settings file name. It must exist.

    Raises NotInitialisedError if SQLite's file does not exist.
    """
    from birthmark_sma.authority.authority import opened_database

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    require_sqlite_file(settings)
    with opened_database(settings) as database:
        yield database


def require_sqlite_file(settings: "Settings") -> None:
    """Raise NotInitialisedError if SQLite is used and its file does not exist.

    Without this check SQLite would create an empty file.
    """
    from birthmark_sma.errors import NotInitialisedError

    if settings.database_url is None and not (settings.data_dir / "sma.db").exists():
        raise NotInitialisedError(
            f"There is no authority in {settings.data_dir}, and DATABASE_URL is not set. To create"
            " one, type: sma init. Or name yours with --data-dir or DATABASE_URL"
        )


def _strengthen_root_key(settings: "Settings") -> None:
    """Encrypt the root's key file anew if an older version used a fast key derivation for it."""
    from birthmark_sma.authority.ca.ceremony import root_key_file
    from birthmark_sma.authority.ca.root_key_file import strengthen_root_key
    from birthmark_sma.authority.kek.passphrase_file import find_passphrase

    path = root_key_file(settings)
    if strengthen_root_key(path, lambda: find_passphrase(settings)):
        print_stderr(
            f"{path} was quick to guess at, and is now encrypted anew under the same passphrase."
        )


def _as_json(settings: "Settings", held: "Ceremony | None") -> dict[str, Any]:
    from birthmark_sma.cli.descriptions import certificate_as_json

    if held is None:
        return {"created": False}
    return {
        "created": True,
        "root": certificate_as_json(held.root),
        "intermediate": certificate_as_json(held.intermediate),
        "root_key_file": str(held.root_key_file),
        "tables": settings.tables,
        "keys_per_table": settings.keys_per_table,
    }


def _tell(held: "Ceremony", *, sandbox: bool) -> None:
    from birthmark_sma.cli.descriptions import certificate_as_fields

    print_line("The authority is founded.\n")
    print_fields(
        [
            *certificate_as_fields("root", held.root),
            *certificate_as_fields("intermediate", held.intermediate),
            ("root key", f"{held.root_key_file} (encrypted)"),
        ]
    )
    if sandbox:
        print_line("\nThis is a sandbox, and never serves as anything else.")
        print_line("Next: sma serve --sandbox")
        return
    print_line("\nMove the root's key to a safe place: the server never needs it.")
    print_line("Next: sma serve")
