"""Checks of the database: it can be reached, it is durable, and it has this program's schema.

`runner` calls these checks first, because the others need the database.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    critical,
    info,
    ok,
    size,
    warning,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError, DatabaseUnavailableError
from birthmark_sma.storage import health
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.migration import check_schema
from birthmark_sma.storage.schema import HEAD_REVISION

_OLDEST_POSTGRESQL = 140_000
"""PostgreSQL 14 is the first version with date_bin, which `storage.portable_sql` uses."""
_CROWDED = 0.8  # share of max_connections in use from which a warning is due
_KEEPS_ALL = {"fsync": "on", "full_page_writes": "on"}
_TOLD = 3  # names that are listed one by one


def find_file(settings: Settings) -> Finding | None:
    """Return a finding if SQLite's file is missing or empty, else None."""
    # Checked before the file is opened, because opening it would create it.
    if not settings.uses_sqlite:
        return None
    file = sqlite_file(settings)
    if not file.exists():
        return critical(
            "database",
            f"There is no authority in {file.parent}: {file.name} is missing",
            "Type sma init, name another place with --data-dir, or restore a backup",
        )
    if file.is_file() and file.stat().st_size == 0:
        return critical("database", f"{file} is empty", "Type sma init, or restore a backup")
    return None


def sqlite_file(settings: Settings) -> Path:
    """Return the path of SQLite's file."""
    return Path(settings.resolved_database_url.removeprefix("sqlite:///"))


def reach(database: Database, settings: Settings) -> Iterator[Finding]:
    """Check that the database answers. If it does not, this is critical and the only finding.

    If it answers, check also its version, durability and that it can be written.
    """
    try:
        database.ping()
    except DatabaseUnavailableError as error:
        why = f": {error.advice}" if error.advice else ""
        yield critical(
            "database", f"{error}{why}", "Callers get 503 until it answers; nothing is lost"
        )
        return
    if database.dialect_name == "postgresql":
        yield from _postgresql(database)
    else:
        yield from _sqlite(database, settings)


def _sqlite(database: Database, settings: Settings) -> Iterator[Finding]:
    file = sqlite_file(settings)
    with database.read() as connection:
        version = health.sqlite_version(connection)
    yield ok("database", f"SQLite {version} answers, {size(file.stat().st_size)} in {file}")
    locked = [path for path in (file, file.parent) if not os.access(path, os.W_OK)]
    if locked:
        yield critical(
            "writing",
            f"{locked[0]} cannot be written by this user",
            "Give it to the user that the server runs as, or type this command as that user",
        )
    else:
        yield ok("writing", "The file and its directory can be written")


def _postgresql(database: Database) -> Iterator[Finding]:
    with database.read() as connection:
        state = health.ask_postgresql(connection)
    what = f"PostgreSQL {state.version_text} answers, {size(state.size)}"
    if state.version < _OLDEST_POSTGRESQL:
        yield critical("database", f"{what}, too old: 14 is needed", "Upgrade PostgreSQL")
    else:
        yield ok("database", what)
    if state.is_standby:
        yield critical(
            "writing",
            "This server is a standby, which cannot be written",
            "Let DATABASE_URL lead to the primary, as with target_session_attrs=read-write",
        )
    elif state.settings["default_transaction_read_only"] == "on":
        yield critical(
            "writing",
            "Transactions are read-only by default",
            "Set default_transaction_read_only to off for this user and database",
        )
    else:
        yield ok("writing", "It is the primary, and takes writes")
    yield from _durability(state)
    allowed = int(state.settings["max_connections"])
    if state.connections >= _CROWDED * allowed:
        yield warning(
            "connections",
            f"{state.connections} of {allowed} connections are in use",
            "Raise max_connections, or run fewer processes",
        )


def _durability(state: health.PostgresqlState) -> Iterator[Finding]:
    off = [name for name, wanted in _KEEPS_ALL.items() if state.settings[name] != wanted]
    if off:
        yield critical(
            "durability",
            f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off: a power cut can destroy"
            " the database",
            "Set it to on in postgresql.conf, and reload",
        )
    elif state.settings["synchronous_commit"] == "off":
        yield critical(
            "durability",
            "synchronous_commit is off: a crash forgets verdicts that were answered",
            "Set it to on, for this database at least",
        )
    else:
        yield ok("durability", "What is committed survives a power cut")
    isolation = state.settings["default_transaction_isolation"]
    if isolation != "read committed":
        yield warning(
            "isolation",
            f"default_transaction_isolation is {isolation}: writers then fail where they should"
            " wait for each other",
            "Set it to read committed for this database",
        )


def recognise(database: Database) -> Iterator[Finding]:
    """Check that the schema is this program's and complete, and that privileges suffice.

    Anything else is critical.
    """
    try:
        check_schema(database)
    except BirthmarkError as error:
        what, _, do = str(error).partition(" Type: ")
        yield critical("schema", what.rstrip("."), f"Type {do}" if do else "Look at its version")
        return
    with database.read() as connection:
        missing = health.missing_parts(connection)
        refused = []
        if database.dialect_name == "postgresql" and not missing:
            refused = health.missing_privileges(connection)
    if missing:
        yield critical(
            "schema",
            f"The schema is {HEAD_REVISION}, but has not {_some(missing)}",
            "Restore a backup: somebody changed the tables",
        )
    elif refused:
        yield critical(
            "schema",
            f"The database's user may not do what the service does: {_some(refused)}",
            "Grant it, as with GRANT ALL ON ALL TABLES IN SCHEMA public, and ALL SEQUENCES too",
        )
    else:
        yield ok("schema", f"The schema is {HEAD_REVISION}, as this program needs it")


def read_whole(database: Database) -> Iterator[Finding]:
    """Read SQLite's whole file and report damage. PostgreSQL checks its own pages."""
    if database.dialect_name != "sqlite":
        yield info(
            "integrity",
            "PostgreSQL checks its pages itself, where checksums are on",
            "To read all of them, use pg_amcheck",
        )
        return
    with database.read() as connection:
        damage = health.find_damage(connection)
    if damage:
        yield critical(
            "integrity",
            f"The file is damaged: {damage[0].splitlines()[0]}",
            "Stop the server, keep the file, and restore the newest backup",
        )
    else:
        yield ok("integrity", "SQLite's file was read, and is whole")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
