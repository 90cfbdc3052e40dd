"""Statistics for operators, read from counters: `/stats`, `/metrics`, `sma top`, the dashboard.

No function reads the audit log itself, so the cost does not grow with it (docs/adr/0006).
"""

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.activity import most_active
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.validation.audit_counters import (
    count_by_hour,
    count_ever,
    count_repeats,
    floor_to_minute,
    hours_until,
)
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time

_DAY = timedelta(hours=24)
_HOURS = 24
_TOP = 10


@dataclass(frozen=True, slots=True)
class Hour:
    """The number of PASS and FAIL verdicts in the UTC hour that starts at `begins`."""

    begins: datetime
    verdicts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """The number of devices, and the verdicts of the last 24 hours (from `since` to `until`).

    `hours` are the last 24 hours that have begun, oldest first. `top_devices` are up to 10 serials
    with the most PASS verdicts of today and yesterday (UTC), with the number of these verdicts.
    """

    total_devices: int
    devices_by_family: dict[str, int]
    key_tables: int
    verdicts_24h: dict[str, int]
    fail_reasons_24h: dict[str, int]
    repeats_24h: dict[str, int]
    hours: list[Hour]
    top_devices: list[tuple[str, int]]
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Totals:
    """All verdicts ever by reason, all repeats ever by kind, and the current devices by family."""

    reasons: Counter[Reason]
    repeats: Counter[Repeat]
    devices: dict[str, int]


def count_totals(database: Database) -> Totals:
    """Return the totals. This reads few rows, whatever the size of the audit log."""
    with database.read() as connection:
        reasons, repeats = count_ever(connection)
        return Totals(reasons, repeats, device_store.count_by_family(connection))


def collect_stats(database: Database) -> Stats:
    """Return the statistics, in a transaction of its own."""
    with database.read() as connection:
        return read_stats(connection)


def read_stats(connection: Connection) -> Stats:
    """Return the statistics, in the caller's transaction.

    The 24 hours are rounded: they begin at a full minute, because counters are by the minute.
    """
    until = database_time(connection)
    since = floor_to_minute(until - _DAY)
    by_hour = count_by_hour(connection, since)
    reasons = sum(by_hour.values(), Counter[Reason]())
    repeats = count_repeats(connection, since)
    families = device_store.count_by_family(connection)
    return Stats(
        total_devices=sum(families.values()),
        devices_by_family=families,
        key_tables=key_table_store.count_tables(connection),
        verdicts_24h=_verdicts(reasons),
        fail_reasons_24h={
            reason.value: times
            for reason, times in reasons.items()
            if reason.verdict is Verdict.FAIL
        },
        repeats_24h={kind.value: repeats[kind] for kind in Repeat},
        hours=[
            Hour(begins, _verdicts(by_hour.get(begins, Counter())))
            for begins in hours_until(until, _HOURS)
        ],
        top_devices=most_active(connection, _two_days(until), limit=_TOP),
        since=since,
        until=until,
    )


def count_registered(database: Database) -> int:
    """Return the number of registered devices. Health checks use it as a test of the database."""
    with database.read() as connection:
        return device_store.count_devices(connection)


def _verdicts(reasons: Counter[Reason]) -> dict[str, int]:
    counted = {verdict.value: 0 for verdict in Verdict}
    for reason, times in reasons.items():
        counted[reason.verdict.value] += times
    return counted


def _two_days(now: datetime) -> list[date]:
    return [now.date() - timedelta(days=1), now.date()]
