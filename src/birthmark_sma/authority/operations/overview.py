"""The overview of an authority for `sma top` and the dashboard, read from counters.

It never reads the audit log itself, so it is fast for any size.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import abuse_flags
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.statistics import Stats, read_stats
from birthmark_sma.authority.validation.audit_counters import count_by_minute, floor_to_minute
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import Database, measure

DATABASE_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
"""The name of each database for people, by the name of SQLAlchemy's dialect."""

MINUTES = 60
"""The number of minutes in the time series of the overview."""


class TimeSeries(NamedTuple):
    """The start of each of the last minutes, oldest first, and its PASS and FAIL verdicts."""

    minutes: Sequence[datetime]
    passes: Sequence[int]
    fails: Sequence[int]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures that both `sma top` and the dashboard show.

    `flagged` is the number of devices that wait for review, `size` the size of the database in
    bytes, and `seconds` the duration of all these queries.
    """

    stats: Stats
    curve: TimeSeries
    flagged: int
    dialect: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of an authority, as stored in its database.

    `callers` is the number of valid access keys. `rotating` is True while there are several
    key-encryption keys. `tables_wanted` is the number of key tables that the authority should have.
    `ca_ends` is the expiry of the intermediate certificate.
    """

    glance: Summary
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


def read_overview(database: Database) -> Overview:
    """Return the overview. Raises DatabaseUnavailableError."""
    with database.read() as connection:
        glance = read_glance(connection, minutes=MINUTES)
        sizes = key_table_store.find_sizes(connection)
        intermediate = ca_store.find_ca(connection, "intermediate")
        keys = access_key_store.all_keys(connection)
        return Overview(
            glance=glance,
            tables_wanted=0 if sizes is None else sizes.tables,
            rotating=len(kek_store.list_keks(connection)) > 1,
            callers=sum(key.is_good(glance.stats.until) for key in keys),
            ca_ends=None
            if intermediate is None
            else x509.load_pem_x509_certificate(
                intermediate.certificate.encode()
            ).not_valid_after_utc,
        )


def read_glance(connection: Connection, *, minutes: int) -> Summary:
    """Return the summary. Its time series has `minutes` minutes, the last one incomplete."""
    began = time.monotonic()
    stats = read_stats(connection)
    last = floor_to_minute(stats.until)
    shown = [last - timedelta(minutes=ago) for ago in reversed(range(minutes))]
    counted = count_by_minute(connection, shown[0])
    passes, fails = (
        [counted[each][verdict] if each in counted else 0 for each in shown]
        for verdict in (Verdict.PASS, Verdict.FAIL)
    )
    return Summary(
        stats=stats,
        curve=TimeSeries(shown, passes, fails),
        flagged=abuse_flags.count_open(connection),
        dialect=connection.dialect.name,
        size=measure(connection),
        seconds=time.monotonic() - began,
    )
