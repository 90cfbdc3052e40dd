"""`sma init` and `sma migrate`: create an authority, and bring its database to this version.

`sma serve` uses `initialise_on_a_laptop`. An existing authority must never be overwritten.
"""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import find_platform, require_sqlite_file, wait_for_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    print_fields,
    print_json,
    print_line,
    print_stderr,
    progress_bar,
    waiting,
)
from birthmark_sma.errors import ConfigurationError, NotInitialisedError
from birthmark_sma.http_requests import is_loopback

if TYPE_CHECKING:
    from birthmark_sma.authority.ca.ceremony import Ceremony
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database


def init(settings: "Settings", sandbox: bool, as_json: Json = False) -> None:
    """Create an authority: certificates and key tables.

    If a run was interrupted, run the command again: it creates what is missing and overwrites
    nothing. With PostgreSQL, set CA_PASSWORD first. With SQLite, a passphrase is generated unless
    CA_PASSWORD is set.

    Afterwards, move the root's key file to a safe place. The server never needs it.
    """
    _check_disk(settings)
    held = initialise_with_progress(settings, sandbox=sandbox)
    _strengthen_root_key(settings)  # for an existing authority; a new key is strong already
    if as_json:
        print_json(_as_json(settings, held))
    elif held is None:
        print_line("The authority exists, and nothing was missing. To see it: sma ca show")
    else:
        _print_created(held, sandbox=sandbox)


def initialise_with_progress(settings: "Settings", *, sandbox: bool = False) -> "Ceremony | None":
    """Create the missing parts of the authority, with a progress bar. Return None if none was."""
    from birthmark_sma.authority.initialisation import initialise

    with progress_bar("Creating key tables") as progress:
        return initialise(settings, progress, find_actor(), sandbox=sandbox)


def initialise_on_a_laptop(settings: "Settings", *, sandbox: bool = False) -> None:
    """Create an authority if there is none, with SQLite and on a loopback address only.

    So `sma serve` works without `sma init` on a laptop. Anywhere else, a forgotten DATABASE_URL
    would create a second authority. There, raise NotInitialisedError for SQLite, and leave
    PostgreSQL to the code that opens the authority.
    """
    from birthmark_sma.authority.initialisation import check_may_be_created, is_initialised

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
        + ("" if sandbox else " To use another one, stop, and set DATABASE_URL or SMA_DATA_DIR.")
    )
    initialise_with_progress(settings, sandbox=sandbox)


def migrate(settings: "Settings", as_json: Json = False) -> None:
    """Migrate the database to the schema of this version.

    After an upgrade, run it once: the server does not start before. If the migration fails, the
    database stays unchanged. A migration cannot be undone, so make a backup with the old version
    first.
    """
    from birthmark_sma.authority.initialisation import record_migration
    from birthmark_sma.storage.engine import open_database
    from birthmark_sma.storage.migration import migrate as migrate_database

    require_sqlite_file(settings)
    wait_for_database(settings)
    database = open_database(settings.resolved_database_url)
    try:
        _check_authority_exists(database)
        with waiting("Migrating the database"):
            before, after = migrate_database(database, partial(record_migration, find_actor()))
    finally:
        database.close()
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        print_line(f"The database is already at schema {after}.")
    else:
        print_line(f"The database was migrated from schema {before or 'none'} to {after}.")


def _check_disk(settings: "Settings") -> None:
    """Raise ConfigurationError on a platform that would delete the root's key with the disk.

    It must come before the ceremony: afterwards the key would exist there alone.
    """
    found = find_platform()
    if found is not None and settings.root_key_file is None:
        raise ConfigurationError(
            f"This platform ({found} is set) deletes its disk at a restart, and with it the root's"
            " key. Run sma init on your own machine, with the same DATABASE_URL and CA_PASSWORD"
        )


def _check_authority_exists(database: "Database") -> None:
    """Raise NotInitialisedError if no authority was created in the database."""
    from birthmark_sma.authority.ca import store as ca_store
    from birthmark_sma.storage.migration import schema_revision

    with database.read() as connection:
        if schema_revision(connection) is None or ca_store.ceremony_time(connection) is None:
            raise NotInitialisedError(
                "There is no authority in this database: create it on your own machine, with the"
                " same DATABASE_URL and CA_PASSWORD, by typing sma init"
            )


def _strengthen_root_key(settings: "Settings") -> None:
    """Encrypt the root's key file anew if an older version used a fast key derivation for it."""
    from birthmark_sma.authority.ca.ceremony import root_key_files
    from birthmark_sma.authority.ca.root_key_file import strengthen_root_key
    from birthmark_sma.authority.kek.passphrase_file import find_passphrase

    for path in root_key_files(settings):
        if strengthen_root_key(path, lambda: find_passphrase(settings)):
            print_stderr(
                f"{path} was encrypted with a fast key derivation. It is now encrypted with a slow"
                " one, under the same passphrase."
            )


def _as_json(settings: "Settings", held: "Ceremony | None") -> dict[str, Any]:
    from birthmark_sma.authority.representations.certificates import certificate_as_json

    if held is None:
        return {"created": False}
    return {
        "created": True,
        "root": certificate_as_json(held.root),
        "intermediate": certificate_as_json(held.intermediate),
        "root_key_file": str(held.root_key_file),
    } | asdict(settings.table_sizes)


def _print_created(held: "Ceremony", *, sandbox: bool) -> None:
    from birthmark_sma.cli.descriptions import certificate_as_fields

    print_line("The authority is created.\n")
    print_fields(
        [
            *certificate_as_fields("root", held.root),
            *certificate_as_fields("intermediate", held.intermediate),
            ("root key", f"{held.root_key_file} (encrypted)"),
        ]
    )
    if sandbox:
        print_line("\nThis is a sandbox. It cannot become a real authority.")
        print_line("Next: sma serve --sandbox")
        return
    print_line("\nMove the root's key file to a safe place. The server never needs it.")
    print_line("Next: sma serve")
