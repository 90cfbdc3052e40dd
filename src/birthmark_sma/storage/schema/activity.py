"""The tables of devices' activity, and of those that make far more pictures than usual."""

from sqlalchemy import BigInteger, Column, Date, Float, Integer, String, Table

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.base import metadata

device_activity = Table(
    "device_activity",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
    Column("passes", BigInteger, nullable=False),
    Column("pictures", BigInteger, nullable=False, server_default="0"),
    # Free space on each page lets PostgreSQL update a row in place, without an index write (HOT).
    postgresql_with={"fillfactor": 70},
)
"""The number of PASS verdicts of each device on each UTC day. `pictures` counts only the first PASS
of a token, from callers that showed a credential: a caller without one cannot raise it. Each
process adds its counts every 3 seconds: see `authority.validation.activity_counter`."""

busiest_devices = Table(
    "busiest_devices",
    metadata,
    Column("day", Date, primary_key=True),
    Column("device_serial", String(64), primary_key=True),
)
"""The short list of the busiest devices of each day: see `authority.devices.activity`."""

device_flags = Table(
    "device_flags",
    metadata,
    Column("device_serial", String(64), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("pictures", BigInteger, nullable=False),
    Column("usual", Float, nullable=False),
    Column("days_compared", Integer, nullable=False),
    Column("threshold", BigInteger, nullable=False),
    Column("flagged_at", UtcDateTime, nullable=False),
    Column("reviewed_at", UtcDateTime),
)
"""Devices with far more pictures on a day than usual, and the counts on which the flag is based."""
