"""The checks of `sma doctor` that only a PostgreSQL database needs. `runner` calls them."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    check_disk,
    critical,
    info,
    ok,
    size,
    warning,
)
from birthmark_sma.counts import counted
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.postgresql.server_role import SERVER_ROLE, may_servers_create

_OLDEST_VERSION = 140_000
"""PostgreSQL 14 is the first version with date_bin, which storage uses."""
_CROWDED = 0.8  # share of max_connections in use from which a warning is due
_KEEPS_ALL = {"fsync": "on", "full_page_writes": "on"}
_AHEAD = timedelta(days=2)  # days ahead that must have a partition; servers create 7
_COUNTED = 10_000  # rows in the default partition are counted up to this number


def check_server(database: Database) -> Iterator[Finding]:
    """Check the version, that the server takes writes, its durability and connections."""
    with database.read() as connection:
        state = health.ask_postgresql(connection)
        may_create = may_servers_create(connection)
    what = f"PostgreSQL {state.version_text} answers: {size(state.size)}"
    if state.version < _OLDEST_VERSION:
        yield critical(f"{what}. This version is too old", "Upgrade to PostgreSQL 14 or later")
    else:
        yield ok(what)
    if state.is_standby:
        yield critical(
            "This server is a standby, which cannot be written",
            "Let DATABASE_URL lead to the primary, as with target_session_attrs=read-write",
            "writing",
        )
    elif state.settings["default_transaction_read_only"] == "on":
        yield critical(
            "Transactions are read-only by default",
            "Set default_transaction_read_only to off for this user and database",
            "writing",
        )
    else:
        yield ok("This server is the primary and takes writes", "writing")
    yield from _check_durability(state)
    if may_create:
        yield warning(
            f"Whoever has the role {SERVER_ROLE} may create functions in the schema, and with them"
            " get the rights of the database's owner",
            "As an administrator of PostgreSQL: REVOKE CREATE ON SCHEMA public FROM PUBLIC, and"
            " grant it to the owner of the database",
            "writing",
        )
    allowed = int(state.settings["max_connections"])
    if state.connections >= _CROWDED * allowed:
        yield warning(
            f"{state.connections} of {allowed} connections are in use",
            "Raise max_connections, or run fewer processes",
            "connections",
        )


def _check_durability(state: health.PostgresqlState) -> Iterator[Finding]:
    off = [name for name, wanted in _KEEPS_ALL.items() if state.settings[name] != wanted]
    if off:
        verb = "is" if len(off) == 1 else "are"
        yield critical(
            f"{' and '.join(off)} {verb} off: a power cut can destroy the database",
            "Set it to on in postgresql.conf, and reload",
            "durability",
        )
    elif state.settings["synchronous_commit"] == "off":
        yield critical(
            "synchronous_commit is off: a crash loses verdicts that callers have already received",
            "Set it to on, at least for this database",
            "durability",
        )
    else:
        yield ok("Committed data survive a power cut", "durability")


def check_integrity() -> Iterator[Finding]:
    """Yield only a hint: PostgreSQL checks its own pages."""
    yield info(
        "PostgreSQL checks each page that it reads, if checksums are on",
        "To check all pages, use pg_amcheck",
    )


def check_partitions(database: Database, now: datetime) -> Iterator[Finding]:
    """Warn if today or the next 2 days have no partition, or if rows are in the default one."""
    with database.read() as connection:
        missing = partitions.missing_days(connection, now.date())
        outside = health.count_unforeseen(connection, limit=_COUNTED)
    if any(day <= now.date() + _AHEAD for day in missing):
        yield warning(
            f"The audit log has no partition for {missing[0]}",
            "Servers create partitions: start one, or look for history-upkeep in its log",
        )
    else:
        yield ok("Today and the days ahead have partitions")
    if outside:
        rows = (
            counted(outside, "audit row is", "audit rows are")
            if outside < _COUNTED
            else f"{outside:,} or more audit rows are"
        )
        yield warning(
            f"{rows} in the default partition",
            "A clock was wrong, or no server created partitions in time. A server moves these rows"
            " when it creates the partition of their day",
        )


def check_free_space(database: Database) -> Iterator[Finding]:
    """Check the free space of a server on this machine, if its directory is readable."""
    with database.read() as connection:
        directory = health.ask_postgresql(connection).data_directory
    try:
        is_visible = directory is not None and directory.exists()
    except OSError:
        is_visible = False
    if directory is not None and is_visible:
        yield check_disk(directory)
    else:
        yield info(
            "The disk of PostgreSQL is not visible from here",
            "Watch it on its own machine: when it is full, callers get 503",
        )
