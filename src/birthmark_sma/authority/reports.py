"""What operators count."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from birthmark_sma.storage import devices, history, key_tables
from birthmark_sma.storage.engine import Database

_DAY = timedelta(hours=24)
_TOP = 10


@dataclass(frozen=True, slots=True)
class Stats:
    """How many devices there are, and what the last 24 hours brought."""

    total_devices: int
    devices_by_family: dict[str, int]
    key_tables: int
    verdicts_24h: dict[str, int]
    fail_reasons_24h: dict[str, int]
    top_devices: list[tuple[str, int]]
    since: datetime
    until: datetime


def collect_stats(database: Database) -> Stats:
    """Count. The most active devices are those with the most PASS verdicts in 24 hours."""
    until = datetime.now(UTC)
    since = until - _DAY
    with database.read() as connection:
        counts = history.count_since(connection, since)
        return Stats(
            total_devices=devices.count_devices(connection),
            devices_by_family=devices.count_by_family(connection),
            key_tables=key_tables.count_tables(connection),
            verdicts_24h={result: sum(by.values()) for result, by in counts.items()},
            fail_reasons_24h=counts["FAIL"],
            top_devices=history.most_active_since(connection, since, limit=_TOP),
            since=since,
            until=until,
        )


def count_registered(database: Database) -> int:
    """Return how many devices are registered; also the proof that the database answers."""
    with database.read() as connection:
        return devices.count_devices(connection)
