"""Checks of secrets, key tables, serials, file modes, free disk space, partitions and retention.

`runner` calls these checks.
"""

import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from birthmark_sma.authority.background import pruning
from birthmark_sma.authority.background.retention import oldest_kept
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.kek.secrets_check import SecretsReport, check_files, check_wrapped
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    critical,
    info,
    ok,
    size,
    warning,
)
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import Database

_DAY = timedelta(days=1)
_AHEAD_DAYS = 2  # days ahead that must have a partition; servers create 7
_COUNTED = 10_000  # rows outside of partitions are counted up to this number
_LEDGER_LOOK = 1_000
_LISTED_COLLISIONS = 20
# Free space in bytes and as a share of the disk. A warning needs both, critical needs one of them.
_SHORT, _SCARCE = 5_000_000_000, 500_000_000
_SHORT_SHARE, _SCARCE_SHARE = 0.10, 0.02


def look_for_authority(database: Database) -> Iterator[Finding]:
    """Check that the database holds an authority. If not, this is critical."""
    with database.read() as connection:
        if key_table_store.find_sizes(connection) is None:
            yield critical("authority", "There is none in this database yet", "Type sma init")


def look_at_tables(database: Database) -> Iterator[Finding]:
    """Check that all key tables exist. A missing one is critical."""
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        present = key_table_store.list_table_ids(connection)
        registered = device_store.are_registered(connection)
    if sizes is None:
        return
    if present == list(range(sizes.tables)):
        yield ok("key tables", f"All {sizes.tables:,} are there")
    else:
        yield critical(
            "key tables",
            f"{len(present):,} of {sizes.tables:,} are there",
            "Restore them from a backup: devices hold keys of them"
            if registered
            else "Type sma tables populate",
        )


def look_at_serials(database: Database) -> Iterator[Finding]:
    """Warn of devices whose serials are the same name (`pki.names.fold`).

    Only devices that an old version provisioned can have such serials.
    """
    with database.read() as connection:
        pairs = device_store.list_collisions(connection, limit=_LISTED_COLLISIONS + 1)
    for older, later in pairs[:_LISTED_COLLISIONS]:
        yield warning(
            "serials",
            f"{later!r} is one name with {older!r}, which was provisioned before",
            "Both work under their exact serials. Provision one of the cameras again under another"
            " serial, and revoke the old one",
        )
    if len(pairs) > _LISTED_COLLISIONS:
        yield warning(
            "serials",
            f"More than {_LISTED_COLLISIONS} devices have a name that an older one has",
            "See to those that are listed, and look again",
        )
    if not pairs:
        yield ok("serials", "No two devices have one name")


def look_at_secrets(database: Database, settings: Settings) -> Iterator[Finding]:
    """Check that all wrapped secrets can be decrypted with the secret of the settings."""
    try:
        report = check_wrapped(database, settings)
    except BirthmarkError as error:
        yield critical("secrets", str(error).rstrip("."), "Without it no server starts")
        return
    dead = not report.opened.get("CA key") or report.broken_tables
    for remark in report.findings:
        judge = critical if dead else warning
        yield judge("secrets", remark.what.rstrip("."), remark.do)
    for remark in report.notes:
        yield info("secrets", remark.what.rstrip("."), remark.do)
    if not report.findings:
        opened = ", ".join(f"{number:,} {what}" for what, number in report.opened.items())
        yield ok("secrets", f"All open: {opened}")


def look_at_files(settings: Settings) -> Iterator[Finding]:
    """Warn of private files that other users can read."""
    report = SecretsReport()
    check_files(report, settings)
    for remark in report.findings:
        yield warning("private files", remark.what.rstrip("."), remark.do)
    for remark in report.notes:
        yield info("private files", remark.what.rstrip("."), remark.do)
    if not report.findings:
        yield ok("private files", "Nobody but their owner can read them")


def look_at_disk(settings: Settings, database: Database | None) -> Iterator[Finding]:
    """Check the free disk space under SQLite's file or PostgreSQL's data directory.

    PostgreSQL's directory is only checked if the server runs on this machine and it is readable.
    """
    if settings.uses_sqlite:
        place = Path(settings.resolved_database_url.removeprefix("sqlite:///")).absolute().parent
        if place.is_dir():
            yield _room("disk", place)
        return
    if database is None:
        return
    with database.read() as connection:
        directory = health.ask_postgresql(connection).data_directory
    try:
        seen = directory is not None and directory.exists()
    except OSError:
        seen = False
    if directory is not None and seen:
        yield _room("disk", directory)
    else:
        yield info(
            "disk",
            "PostgreSQL's disk cannot be seen from here",
            "Watch it where it is: when it is full, callers get 503",
        )


def look_at_partitions(database: Database, now: datetime) -> Iterator[Finding]:
    """Warn if today or the next 2 days have no partition, or if rows lie in the default one."""
    if database.dialect_name != "postgresql":
        return
    with database.read() as connection:
        missing = partitions.missing_days(connection, now.date())
        outside = health.count_unforeseen(connection, limit=_COUNTED)
    if any(day <= now.date() + _AHEAD_DAYS * _DAY for day in missing):
        yield warning(
            "partitions",
            f"The audit trail has no partition for {missing[0]}",
            "A server makes them: start one, or look at its log for history-upkeep",
        )
    else:
        yield ok("partitions", "Today and the days ahead have theirs")
    if outside:
        number = f"{outside:,}" if outside < _COUNTED else f"{outside:,} or more"
        yield warning(
            "partitions",
            f"{number} audit rows lie outside of their days' partitions",
            "A clock was wrong, or no server made partitions in time. They move when their day gets"
            " one",
        )


def look_at_retention(database: Database, settings: Settings, now: datetime) -> Iterator[Finding]:
    """Warn if the audit log or the replay ledger has rows older than the retention time."""
    days = settings.audit_retention_days
    if days is None:
        yield info(
            "retention",
            "The audit trail and the replay ledger are kept for ever",
            "To bound them, set SMA_AUDIT_RETENTION_DAYS",
        )
        return
    late = oldest_kept(days + 1, now)  # a day of grace: servers prune every hour
    with database.read() as connection:
        whole, partly = pruning.split_by_age(partitions.list_partitions(connection), late)
        rows = bool(whole) or any(pruning.is_any_older(connection, aged, late) for aged in partly)
        tokens = bool(replay_ledger.find_old(connection, late, limit=_LEDGER_LOOK))
    if rows or tokens:
        what = " and ".join(
            name for name, old in (("the audit trail", rows), ("the replay ledger", tokens)) if old
        )
        yield warning(
            "retention",
            f"{what[:1].upper()}{what[1:]} hold more than the {days} days that are to be kept",
            f"A server prunes every hour: look at its log, or type sma history prune"
            f" --older-than-days {days}",
        )
    else:
        yield ok("retention", f"Nothing is older than the {days} days that are kept")


def _room(name: str, place: Path) -> Finding:
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return warning(name, f"{place} cannot be asked for room: {error.strerror}", "Look at it")
    share = usage.free / usage.total if usage.total else 0.0
    sentence = f"{size(usage.free)} of {size(usage.total)} are free under {place}"
    do = "Make room: when it is full, callers get 503"
    if usage.free < _SCARCE or share < _SCARCE_SHARE:
        return critical(name, sentence, do)
    if usage.free < _SHORT and share < _SHORT_SHARE:
        return warning(name, sentence, do)
    return ok(name, sentence)
