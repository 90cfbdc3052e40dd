"""What operators count."""

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
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database

_DAY = timedelta(hours=24)
_HOURS = 24
_TOP = 10


@dataclass(frozen=True, slots=True)
class Hour:
    """The verdicts of one hour (UTC), which `begins` names."""

    begins: datetime
    verdicts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """How many devices there are, and what the last 24 hours brought.

    `hours` are the last 24 that have begun, oldest first. `top_devices` have the most PASS verdicts
    of today and yesterday (UTC), and how many these are.
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
    """Verdicts by reason and repeats by kind that there ever were; and devices by family."""

    reasons: Counter[Reason]
    repeats: Counter[Repeat]
    devices: dict[str, int]


def count_totals(database: Database) -> Totals:
    """Read the totals, which are few rows however long the audit trail is."""
    with database.read() as connection:
        reasons, repeats = count_ever(connection)
        return Totals(reasons, repeats, device_store.count_by_family(connection))


def collect_stats(database: Database) -> Stats:
    """Read the counters; the audit trail is not read."""
    with database.read() as connection:
        return read_stats(connection)


def read_stats(connection: Connection) -> Stats:
    """The same, beside other things. The 24 hours begin with a whole minute."""
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
    """Return how many devices are registered; also the proof that the database answers."""
    with database.read() as connection:
        return device_store.count_devices(connection)


def _verdicts(reasons: Counter[Reason]) -> dict[str, int]:
    counted = {verdict.value: 0 for verdict in Verdict}
    for reason, times in reasons.items():
        counted[reason.verdict.value] += times
    return counted


def _two_days(now: datetime) -> list[date]:
    return [now.date() - timedelta(days=1), now.date()]
