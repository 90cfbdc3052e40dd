"""Run all checks of `sma doctor` in order and collect their findings.

If the database is away, empty or has another schema, the checks that need it are skipped; files,
disk and TLS are always checked. An error in a check becomes a finding and never ends the run.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial

from birthmark_sma import __version__
from birthmark_sma.authority.operations.doctor import database as database_checks
from birthmark_sma.authority.operations.doctor import expiry, secrets_and_disk
from birthmark_sma.authority.operations.doctor.audit_log import look_at_audit_trail
from birthmark_sma.authority.operations.doctor.findings import Finding, State, critical, ok
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.storage.engine import Database, open_database

Check = tuple[str, Callable[[], Iterable[Finding]]]
"""The name of a check, and the function that runs it."""
Progress = Callable[[int, int], None]
"""Called with the number of checks done and the number of all in this group."""


def examine(
    settings: Settings, now: datetime, progress: Progress, *, whole_trail: bool = False
) -> list[Finding]:
    """Run all checks; return their findings in the order of the checks.

    Of a large audit log only the newest days are compared, unless `whole_trail` is set. Raises
    ConfigurationError if the database's URL cannot be read.
    """
    findings = [_version(settings)]
    # First, because opening SQLite's file would create it.
    absent = database_checks.find_file(settings)
    if absent is not None:
        return [*findings, absent, *_beside(settings, None, now, progress)]
    database = open_database(settings.resolved_database_url)
    try:
        found = _of_database(database, settings)
        findings += found
        whole = not _is_stopped(found)
        looks = _inside(database, settings, now, whole_trail=whole_trail) if whole else []
        answers = database if any(each.name == "writing" for each in found) else None
        findings += _all_of(looks, progress)
        return findings + _beside(settings, answers, now, progress)
    finally:
        database.close()


def _version(settings: Settings) -> Finding:
    kind = "SQLite" if settings.uses_sqlite else "PostgreSQL"
    return ok("version", f"birthmark-sma {__version__} on Python {_python()}, with {kind}")


def _python() -> str:
    return platform.python_version()


def _of_database(database: Database, settings: Settings) -> list[Finding]:
    """Run the checks that all others depend on; stop at the first critical finding."""
    found: list[Finding] = []
    looks: list[Check] = [
        ("database", partial(database_checks.reach, database, settings)),
        ("schema", partial(database_checks.recognise, database)),
        ("authority", partial(secrets_and_disk.look_for_authority, database)),
    ]
    for look in looks:
        found += _seen(look)
        if _is_stopped(found):
            break
    return found


def _is_stopped(found: Iterable[Finding]) -> bool:
    ends = {"database", "schema", "authority"}
    return any(each.state is State.CRITICAL and each.name in ends for each in found)


def _inside(
    database: Database, settings: Settings, now: datetime, *, whole_trail: bool
) -> list[Check]:
    return [
        ("integrity", partial(database_checks.read_whole, database)),
        ("key tables", partial(secrets_and_disk.look_at_tables, database)),
        ("serials", partial(secrets_and_disk.look_at_serials, database)),
        ("secrets", partial(secrets_and_disk.look_at_secrets, database, settings)),
        ("CA", partial(expiry.look_at_ca, database, now)),
        ("clock", partial(expiry.look_at_clock, database, now)),
        ("access keys", partial(expiry.look_at_keys, database, settings, now)),
        ("audit trail", partial(look_at_audit_trail, database, whole=whole_trail)),
        ("partitions", partial(secrets_and_disk.look_at_partitions, database, now)),
        ("retention", partial(secrets_and_disk.look_at_retention, database, settings, now)),
    ]


def _beside(
    settings: Settings, database: Database | None, now: datetime, progress: Progress
) -> list[Finding]:
    looks: list[Check] = [
        ("TLS", partial(expiry.look_at_tls, settings, now)),
        ("private files", partial(secrets_and_disk.look_at_files, settings)),
        ("disk", partial(secrets_and_disk.look_at_disk, settings, database)),
    ]
    return _all_of(looks, progress)


def _all_of(looks: list[Check], progress: Progress) -> list[Finding]:
    found: list[Finding] = []
    for done, look in enumerate(looks):
        progress(done, len(looks))
        found += _seen(look)
    progress(len(looks), len(looks))
    return found


def _seen(look: Check) -> Iterator[Finding]:
    """Run one check and yield its findings. An error becomes a critical finding."""
    name, looking = look
    try:
        yield from looking()
    except BirthmarkError as error:
        advice = getattr(error, "advice", "")
        why = f"{error}: {advice}" if advice else str(error).rstrip(".")
        yield critical(name, f"This could not be looked at. {why}", "See to that, and look again")
    except OSError as error:
        yield critical(
            name, f"This could not be looked at: {error.strerror}", "See to that, and look again"
        )
