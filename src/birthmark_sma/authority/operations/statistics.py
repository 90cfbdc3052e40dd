"""Statistics for operators, read from counters: `/stats`, `/metrics`, `sma top`, the dashboard.

No function may read the audit log itself, so the cost does not grow with it (docs/adr/0006).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import CaRole
from birthmark_sma.authority.devices import abuse_flags, certificates_store
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.activity import most_active
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.validation.audit_counters import (
    count_by_step,
    count_ever,
    count_repeats,
    hours_until,
)
from birthmark_sma.authority.validation.records import floor_to_minute
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.engine import Database, measure
from birthmark_sma.storage.portable_sql import TimeStep, choose, database_time

MINUTES = 60
"""The number of minutes in the time series of `sma top`."""

SOON, DUE = timedelta(days=30), timedelta(days=90)
"""The periods in which certificates of devices that end are counted."""

_MOST_EXPIRING = 100_000
_EXPIRING_SECONDS = 60.0
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


class TimeSeries(NamedTuple):
    """The start of each of the last minutes, oldest first, and its PASS and FAIL verdicts."""

    minutes: Sequence[datetime]
    passes: Sequence[int]
    fails: Sequence[int]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures that both `sma top` and the dashboard show.

    `flagged` is the number of devices that wait for review. `database` is `PostgreSQL` or `SQLite`,
    `size` its size in bytes, and `seconds` the duration of all these queries.
    """

    stats: Stats
    flagged: int
    database: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of an authority, as stored in its database.

    `curve` has the verdicts of the last hour. `callers` is the number of valid access keys.
    `rotating` is True while there are several key-encryption keys. `tables_wanted` is the number of
    key tables that the authority should have. `ca_ends` is the expiry of the active intermediate.
    """

    glance: Summary
    curve: TimeSeries
    tables_wanted: int
    rotating: bool
    callers: int
    ca_ends: datetime | None

    @property
    def success_rate(self) -> float | None:
        """The share of PASS verdicts in the last 24 hours (0 to 1), or None without verdicts."""
        verdicts = self.glance.stats.verdicts_24h
        total = sum(verdicts.values())
        return verdicts[Verdict.PASS.value] / total if total else None


@dataclass(frozen=True, slots=True)
class Totals:
    """All verdicts ever by reason, all repeats ever by kind, and the current devices by family.

    `expiring` has the numbers of device certificates that end within 30 and 90 days, by days, and
    under 0 that of those that have ended in the last 90 days. `open_overlaps` is the number of key
    tables of which two keys are accepted.
    """

    reasons: Counter[Reason]
    repeats: Counter[Repeat]
    devices: dict[str, int]
    expiring: dict[int, int]
    open_overlaps: int


class TotalsReader:
    """Reads the totals. Owned by one thread.

    The certificates that end soon are counted at most once a minute, up to 100,000 of each period,
    because that reads a row for each.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._expiring: dict[int, int] = {}
        self._counted = float("-inf")

    def read(self) -> Totals:
        """Return the totals. This reads few rows, whatever the size of the audit log."""
        with self._database.read() as connection:
            now = database_time(connection)
            if time.monotonic() - self._counted >= _EXPIRING_SECONDS:
                self._expiring = count_expiring(connection, now, _MOST_EXPIRING)
                self._counted = time.monotonic()
            reasons, repeats = count_ever(connection)
            families = device_store.count_by_family(connection)
            overlaps = key_table_store.count_open(connection, now)
            return Totals(reasons, repeats, families, self._expiring, overlaps)


def count_expiring(connection: Connection, now: datetime, most: int) -> dict[int, int]:
    """Return the numbers of certificates of devices in use, as in `Totals.expiring`.

    Each number is at most `most`. "In use" is active or suspended.
    """
    periods = {0: (now - DUE, now)} | {each.days: (now, now + each) for each in (SOON, DUE)}
    return {
        days: certificates_store.count_expiring(connection, since, before, most)
        for days, (since, before) in periods.items()
    }


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
    by_hour = count_by_step(connection, TimeStep.HOUR, since)
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


def read_overview(database: Database) -> Overview:
    """Return the overview. Raises DatabaseUnavailableError."""
    with database.read() as connection:
        glance = read_glance(connection)
        sizes = key_table_store.find_sizes(connection)
        intermediate = ca_store.find_active(connection, CaRole.INTERMEDIATE)
        keys = access_key_store.all_keys(connection)
        return Overview(
            glance=glance,
            curve=_read_curve(connection, glance.stats.until),
            tables_wanted=0 if sizes is None else sizes.tables,
            rotating=len(kek_store.list_keks(connection)) > 1,
            callers=sum(key.is_good(glance.stats.until) for key in keys),
            ca_ends=None if intermediate is None else intermediate.load().not_valid_after_utc,
        )


def read_glance(connection: Connection) -> Summary:
    """Return the summary."""
    began = time.monotonic()
    return Summary(
        stats=read_stats(connection),
        flagged=abuse_flags.count_open(connection),
        database=choose(connection, postgresql="PostgreSQL", sqlite="SQLite"),
        size=measure(connection),
        seconds=time.monotonic() - began,
    )


def count_registered(database: Database) -> int:
    """Return the number of registered devices. Health checks use it as a test of the database."""
    with database.read() as connection:
        return device_store.count_devices(connection)


def _read_curve(connection: Connection, now: datetime) -> TimeSeries:
    """Return the last MINUTES minutes. The last one is incomplete."""
    last = floor_to_minute(now)
    shown = [last - timedelta(minutes=ago) for ago in reversed(range(MINUTES))]
    counted = count_by_step(connection, TimeStep.MINUTE, shown[0])
    verdicts = [_verdicts(counted.get(each, Counter())) for each in shown]
    passes, fails = ([each[verdict.value] for each in verdicts] for verdict in Verdict)
    return TimeSeries(shown, passes, fails)


def _verdicts(reasons: Counter[Reason]) -> dict[str, int]:
    counted = {verdict.value: 0 for verdict in Verdict}
    for reason, times in reasons.items():
        counted[reason.verdict.value] += times
    return counted


def _two_days(now: datetime) -> list[date]:
    return [now.date() - timedelta(days=1), now.date()]
