"""Run all checks of `sma doctor` in order and collect their findings.

If the database is away, empty or has another schema, the checks that need it are skipped; files,
disk and TLS are always checked. An error in a check becomes a finding and never ends the run.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from birthmark_sma import __version__
from birthmark_sma.authority.operations.doctor import database as database_checks
from birthmark_sma.authority.operations.doctor import (
    expiry,
    postgresql_checks,
    secrets,
    sqlite_checks,
)
from birthmark_sma.authority.operations.doctor.audit_checkpoints import check_checkpoints
from birthmark_sma.authority.operations.doctor.audit_log import ROWS, check_audit_log
from birthmark_sma.authority.operations.doctor.findings import Finding, State, critical, ok
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.storage.engine import Database, open_database

Check = tuple[str, Callable[[], Iterable[Finding]]]
"""The name of a check, and the function that runs it."""


class Extent(NamedTuple):
    """How much the checks may read at most. None means everything."""

    audit_rows: int | None = ROWS
    file_bytes: int | None = None
    """A larger SQLite file is not read."""


Progress = Callable[[int, int], None]
"""Called with the number of checks done and the number of all in this group."""


def examine(
    settings: Settings, now: datetime, progress: Progress, *, extent: Extent | None = None
) -> list[Finding]:
    """Run all checks; return their findings in the order of the checks.

    Without an extent that says otherwise, only the newest days of a large audit log are compared.
    Raises ConfigurationError if the database's URL cannot be read.
    """
    file = settings.sqlite_file
    kind, python = "PostgreSQL" if file is None else "SQLite", platform.python_version()
    version = ok(f"birthmark-sma {__version__} on Python {python}, with {kind}", "version")
    absent = None if file is None else sqlite_checks.find_absent(file)
    if absent is not None:
        return [version, absent, *_run(_outside(settings, None, now), progress)]
    database = open_database(settings.resolved_database_url)
    try:
        findings = [version, *_of_database(database, file)]
        if not _is_stopped(findings):
            inside = _inside(database, settings, now, extent or Extent())
            findings += _run(inside, progress)
        answers = database if any(each.name == "writing" for each in findings) else None
        return findings + _run(_outside(settings, answers, now), progress)
    finally:
        database.close()


def _of_database(database: Database, file: Path | None) -> list[Finding]:
    """Run the checks that all others depend on; stop at the first critical finding."""
    checks: list[Check] = [
        ("database", lambda: database_checks.check_connection(database, file)),
        ("schema", lambda: database_checks.check_schema_parts(database)),
        ("authority", lambda: database_checks.check_authority(database)),
    ]
    found: list[Finding] = []
    for check in checks:
        if not _is_stopped(found):
            found += _results(check)
    return found


def _is_stopped(found: Iterable[Finding]) -> bool:
    ends = {"database", "schema", "authority"}
    return any(each.state is State.CRITICAL and each.name in ends for each in found)


def _inside(database: Database, settings: Settings, now: datetime, extent: Extent) -> list[Check]:
    """Return the checks that need the tables of an authority."""
    checks: list[Check] = [
        ("key tables", lambda: secrets.check_tables(database)),
        ("table keys", lambda: expiry.check_overlaps(database)),
        ("serials", lambda: database_checks.check_serials(database)),
        ("device statuses", lambda: database_checks.check_statuses(database)),
        ("secrets", lambda: secrets.decrypt_all(database, settings)[1]),
        ("CA", lambda: expiry.check_ca(database, now)),
        ("device certificates", lambda: expiry.check_device_certificates(database, now)),
        ("renewal orders", lambda: expiry.check_renewal_orders(database, now)),
        ("clock", lambda: expiry.check_clock(database, now)),
        ("access keys", lambda: expiry.check_access_keys(database, settings, now)),
        ("audit trail", lambda: check_audit_log(database, extent.audit_rows)),
        ("audit checkpoints", lambda: check_checkpoints(database)),
        ("retention", lambda: database_checks.check_retention(database, settings, now)),
        ("privacy", lambda: database_checks.check_privacy(database, settings, now)),
    ]
    if (file := settings.sqlite_file) is not None:
        most = extent.file_bytes
        return [("integrity", lambda: sqlite_checks.check_integrity(database, file, most)), *checks]
    return [
        ("integrity", postgresql_checks.check_integrity),
        *checks,
        ("partitions", lambda: postgresql_checks.check_partitions(database, now)),
    ]


def _outside(settings: Settings, database: Database | None, now: datetime) -> list[Check]:
    """Return the checks that need no authority. `database` is None if it does not answer."""
    checks: list[Check] = [
        ("TLS", lambda: expiry.check_tls(settings, now)),
        ("private files", lambda: secrets.check_files(settings)),
    ]
    if (file := settings.sqlite_file) is not None:
        checks.append(("disk", lambda: sqlite_checks.check_free_space(file)))
    elif database is not None:
        checks.append(("disk", lambda: postgresql_checks.check_free_space(database)))
    return checks


def _run(checks: list[Check], progress: Progress) -> list[Finding]:
    found: list[Finding] = []
    for done, check in enumerate(checks):
        progress(done, len(checks))
        found += _results(check)
    progress(len(checks), len(checks))
    return found


def _results(check: Check) -> Iterator[Finding]:
    """Run one check and yield its findings. An error becomes a critical finding."""
    name, run = check
    try:
        for finding in run():
            yield finding if finding.name else replace(finding, name=name)
        return
    except BirthmarkError as error:
        advice = getattr(error, "advice", "")
        why = f"{error}: {advice}" if advice else str(error).rstrip(".")
    except OSError as error:
        why = str(error.strerror)
    yield critical(f"This check failed: {why}", "Correct this, then run this command again", name)
