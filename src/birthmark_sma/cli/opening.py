"""Open what the settings name: a server, an existing database, or the authority in it.

The commands use it. Nothing here creates a database: SQLite would create an empty file for a wrong
path, so its file must exist.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from birthmark_sma.cli.output import print_stderr, waiting
from birthmark_sma.counts import counted
from birthmark_sma.errors import DatabaseUnavailableError, NotInitialisedError

if TYPE_CHECKING:
    from birthmark_sma.authority.authority import Authority
    from birthmark_sma.cli.administration.interface import Administration
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

_RETRY_SECONDS = 1.0
# Variables that hosting platforms set where they delete the disk at each restart.
_PLATFORM_VARIABLES = ("DYNO", "FLY_APP_NAME", "RAILWAY_ENVIRONMENT_NAME")


def find_platform() -> str | None:
    """Return the variable by which a hosting platform shows that it deletes the disk, or None."""
    return next((name for name in _PLATFORM_VARIABLES if os.environ.get(name)), None)


@contextmanager
def existing_database(settings: "Settings") -> Iterator["Database"]:
    """Open the database of an authority, and close it at the end.

    Print a warning if the data directory had another authority. Raises
    NotInitialisedError if SQLite's file does not exist, ConfigurationError if DATABASE_URL was
    forgotten, and AuthorityMovedError.
    """
    from birthmark_sma.authority.authority import opened_database

    require_sqlite_file(settings)
    with opened_database(settings) as database:
        _warn_of_difference(settings, database)
        yield database


@contextmanager
def administration(settings: "Settings") -> Iterator["Administration"]:
    """Open what a command administers: the server that the settings name, else the database.

    Raises as `existing_database`, and ConfigurationError for a server that cannot be used.
    """
    if settings.server is None:
        from birthmark_sma.cli.administration.local import LocalAdministration

        with existing_database(settings) as database:
            yield LocalAdministration(database)
        return
    from birthmark_sma.cli.administration.remote import RemoteAdministration
    from birthmark_sma.cli.administration.transport import ServerConnection

    connection = ServerConnection(settings)
    try:
        yield RemoteAdministration(connection)
    finally:
        connection.close()


@contextmanager
def existing_authority(settings: "Settings") -> Iterator["Authority"]:
    """Open an authority, with a spinner on a terminal, and close it at the end.

    Print a warning if the data directory had another authority. Raises
    NotInitialisedError if SQLite's file does not exist, ConfigurationError if DATABASE_URL was
    forgotten, and AuthorityMovedError.
    """
    from birthmark_sma.authority.authority import open_authority

    require_sqlite_file(settings)
    with waiting("Opening the authority"):
        authority = open_authority(settings)
    try:
        _warn_of_difference(settings, authority.database)
        yield authority
    finally:
        authority.close()


def _warn_of_difference(settings: "Settings", database: "Database") -> None:
    from birthmark_sma.authority.ca.store import find_authority_id
    from birthmark_sma.authority.data_directory import describe_difference

    with database.read() as connection:
        authority_id = find_authority_id(connection)
    difference = authority_id and describe_difference(settings, authority_id)
    if difference:
        print_stderr(f"WARNING: {difference}")


def require_sqlite_file(settings: "Settings") -> None:
    """Raise NotInitialisedError if SQLite is used and its file does not exist.

    Raise ConfigurationError if the data directory had an authority on PostgreSQL.
    """
    if settings.database_url is None and not (settings.data_dir / "sma.db").exists():
        from birthmark_sma.authority.data_directory import check_not_forgotten

        check_not_forgotten(settings)
        platform = find_platform()
        if platform is not None:
            raise NotInitialisedError(
                f"DATABASE_URL is not set. This platform ({platform} is set) deletes its disk at a"
                " restart, so attach a PostgreSQL to the app"
            )
        raise NotInitialisedError(
            f"There is no authority in {settings.data_dir}, and DATABASE_URL is not set. To create"
            " one, type: sma init. Or name yours with --data-dir or DATABASE_URL"
        )


def wait_for_database(settings: "Settings") -> None:
    """Return when PostgreSQL answers. Meanwhile print a line a second, and try again.

    A hosting platform starts a server and its database at the same time, and restarts a server that
    exits in ever longer intervals. Raises DatabaseUnavailableError after `database_wait` seconds.
    """
    from birthmark_sma.storage.engine import open_database

    if settings.uses_sqlite:
        return
    database = open_database(settings.resolved_database_url)
    deadline = time.monotonic() + settings.database_wait
    advised = False
    try:
        while True:
            began = time.monotonic()
            try:
                database.ping()
            except DatabaseUnavailableError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                advice = f": {error.advice}" if error.advice and not advised else ""
                print_stderr(f"{error}{advice}. Trying again for {counted(round(left), 'second')}.")
                advised = True
                # A failed attempt to connect may have taken longer than a second.
                time.sleep(min(left, max(0.0, began + _RETRY_SECONDS - time.monotonic())))
            else:
                return
    finally:
        database.close()
