"""A history that grows: partitions a day on PostgreSQL, and counters in place of scans.

On PostgreSQL the rows that are there stay where they are: their table becomes the partition of all
days until the midnight after the migration. To attach it reads two million rows in a third of a
second, where copying would write them and their index again and need their room twice. Counting the
rows takes the most of the migration: some seconds for each million.
"""

from datetime import UTC

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0002"
down_revision = "0001"

_LISTED = 25


def upgrade() -> None:
    on_postgresql = op.get_context().dialect.name == "postgresql"
    if on_postgresql:  # what an older program still writes meanwhile would never be counted
        op.execute("LOCK TABLE validation_history, registered_devices IN EXCLUSIVE MODE")
    _create_counters()
    minute, day = _ON_POSTGRESQL if on_postgresql else _ON_SQLITE
    _count_what_is_there(minute, day)
    if on_postgresql:
        _partition()


def _create_counters() -> None:
    op.create_table(
        "validation_counters",
        sa.Column("minute", UtcDateTime, primary_key=True),
        sa.Column("reason", sa.String(24), primary_key=True),
        sa.Column("writer", sa.SmallInteger, primary_key=True),
        sa.Column("times", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "device_activity",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("device_serial", sa.String(64), primary_key=True),
        sa.Column("passes", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 70},
    )
    op.create_table(
        "busiest_devices",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("device_serial", sa.String(64), primary_key=True),
    )
    op.create_table(
        "device_family_counters",
        sa.Column("device_family", sa.String(50), primary_key=True),
        sa.Column("devices", sa.BigInteger, nullable=False),
    )


_ON_POSTGRESQL = (
    "date_trunc('minute', validated_at, 'UTC')",
    "CAST(validated_at AT TIME ZONE 'UTC' AS date)",
)
_ON_SQLITE = (
    r"substr(validated_at, 1, length('2026-01-01 00\:00\:')) || '00.000000+00\:00'",
    "substr(validated_at, 1, length('2026-01-01'))",
)


def _count_what_is_there(minute: str, day: str) -> None:
    op.execute(
        "INSERT INTO validation_counters (minute, reason, writer, times)"
        f" SELECT {minute}, reason, 0, count(*) FROM validation_history GROUP BY 1, 2"
    )
    op.execute(
        "INSERT INTO device_activity (day, device_serial, passes)"
        f" SELECT {day}, device_serial, count(*) FROM validation_history"
        " WHERE validation_result = 'PASS' AND device_serial IS NOT NULL GROUP BY 1, 2"
    )
    op.execute(
        "INSERT INTO busiest_devices (day, device_serial)"
        " SELECT day, device_serial FROM ("
        "  SELECT day, device_serial, row_number() OVER ("
        "   PARTITION BY day ORDER BY passes DESC, device_serial) AS place"
        f"  FROM device_activity) AS ranked WHERE place <= {_LISTED}"
    )
    op.execute(
        "INSERT INTO device_family_counters (device_family, devices)"
        " SELECT device_family, count(*) FROM registered_devices GROUP BY device_family"
    )


def _partition() -> None:
    op.execute("ALTER TABLE validation_history RENAME TO validation_history_before")
    op.execute("ALTER TABLE validation_history_before ALTER COLUMN id DROP DEFAULT")
    op.execute("ALTER TABLE validation_history_before DROP CONSTRAINT validation_history_pkey")
    op.execute(
        "ALTER INDEX validation_history_validated_at_idx"
        " RENAME TO validation_history_before_validated_at_idx"
    )
    op.execute(
        "CREATE TABLE validation_history (LIKE validation_history_before)"
        " PARTITION BY RANGE (validated_at)"
    )
    op.execute(
        "ALTER TABLE validation_history"
        " ALTER COLUMN id SET DEFAULT nextval('validation_history_id_seq')"
    )
    op.execute("ALTER SEQUENCE validation_history_id_seq OWNED BY validation_history.id")
    op.create_index("validation_history_validated_at_idx", "validation_history", ["validated_at"])
    op.execute("CREATE TABLE validation_history_unforeseen PARTITION OF validation_history DEFAULT")
    _keep_old_rows()


def _keep_old_rows() -> None:
    connection = op.get_bind()
    [midnight] = connection.execute(
        sa.text("SELECT date_trunc('day', now(), 'UTC') + interval '24 hours'")
    ).one()
    # What a wrong clock wrote for days to come goes to the default partition.
    connection.execute(
        sa.text(
            "WITH moved AS (DELETE FROM validation_history_before WHERE validated_at >= :midnight"
            " RETURNING *) INSERT INTO validation_history SELECT * FROM moved"
        ),
        {"midnight": midnight},
    )
    if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM validation_history_before)")):
        day = midnight.astimezone(UTC)  # it comes in the session's zone, where it is another date
        op.execute(
            "ALTER TABLE validation_history ATTACH PARTITION validation_history_before"
            f" FOR VALUES FROM (MINVALUE) TO ('{day:%Y-%m-%d} 00\\:00\\:00+00')"
        )
    else:
        op.execute("DROP TABLE validation_history_before")
