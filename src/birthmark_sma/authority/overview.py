"""What an operator wants to see at a glance, read from the counters."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.authority.reports import Stats, collect_stats
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage import access_keys, certificates, flags, kek_records, key_tables
from birthmark_sma.storage.counters import count_by_minute, floor_to_minute
from birthmark_sma.storage.engine import Database, measure

MINUTES = 60


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of an authority.

    `passes` and `fails` are of the last MINUTES minutes that have begun, oldest first; `size` is in
    bytes, `seconds` is how long the database took to tell all this. `rotating` says whether several
    key-encryption keys are in force.
    """

    stats: Stats
    passes: list[int]
    fails: list[int]
    flagged: int
    tables_wanted: int
    rotating: bool
    keys_in_force: int
    ca_ends: datetime | None
    dialect: str
    size: int
    seconds: float

    @property
    def success_rate(self) -> float | None:
        """The share of PASS in 24 hours; None where nothing was validated."""
        verdicts = self.stats.verdicts_24h
        total = sum(verdicts.values())
        return verdicts[Verdict.PASS.value] / total if total else None


def look(database: Database) -> Overview:
    """Read the overview. Raises DatabaseUnavailableError."""
    began = time.monotonic()
    stats = collect_stats(database)
    last = floor_to_minute(stats.until)
    minutes = [last - timedelta(minutes=ago) for ago in reversed(range(MINUTES))]
    with database.read() as connection:
        counted = count_by_minute(connection, minutes[0])
        sizes = key_tables.find_sizes(connection)
        intermediate = certificates.find_ca(connection, "intermediate")
        keys = access_keys.all_keys(connection)
        return Overview(
            stats=stats,
            passes=[counted[each][Verdict.PASS] if each in counted else 0 for each in minutes],
            fails=[counted[each][Verdict.FAIL] if each in counted else 0 for each in minutes],
            flagged=flags.count_open(connection),
            tables_wanted=0 if sizes is None else sizes.tables,
            rotating=len(kek_records.list_keks(connection)) > 1,
            keys_in_force=sum(key.is_good(stats.until) for key in keys),
            ca_ends=None
            if intermediate is None
            else x509.load_pem_x509_certificate(
                intermediate.certificate.encode()
            ).not_valid_after_utc,
            dialect=database.dialect_name,
            size=measure(connection),
            seconds=time.monotonic() - began,
        )
