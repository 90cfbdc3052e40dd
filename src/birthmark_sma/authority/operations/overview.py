"""What an operator wants to see at a glance, read from the counters: in a terminal or a browser."""

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
"""What people call a database, by SQLAlchemy's name of its dialect."""

MINUTES = 60


class TimeSeries(NamedTuple):
    """Verdicts of each of the last minutes, oldest first, and when each minute began."""

    minutes: Sequence[datetime]
    passes: Sequence[int]
    fails: Sequence[int]


@dataclass(frozen=True, slots=True)
class Summary:
    """What both show.

    `flagged` counts devices that wait for review, `size` is in bytes, and `seconds` is how long the
    database took to tell all this.
    """

    stats: Stats
    curve: TimeSeries
    flagged: int
    dialect: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of an authority, as its database knows it.

    `callers` counts the access keys in force; `rotating` says whether several key-encryption keys
    are.
    """

    glance: Summary
    tables_wanted: int
    rotating: bool
    callers: int
    ca_ends: datetime | None

    @property
    def success_rate(self) -> float | None:
        """The share of PASS in 24 hours; None where nothing was validated."""
        verdicts = self.glance.stats.verdicts_24h
        total = sum(verdicts.values())
        return verdicts[Verdict.PASS.value] / total if total else None


def read_overview(database: Database) -> Overview:
    """Read the overview. Raises DatabaseUnavailableError."""
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
    """Read what both show; the curve has so many minutes, and the one that runs at its end."""
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
