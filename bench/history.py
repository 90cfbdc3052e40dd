"""Fill the audit log with many rows, in SQL, as validations would have left them.

It fills the counters too, so that the overview shows what validations would have counted. The parts
`scale` and `pages` call it.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import psycopg

from tests.support.busy_authority import SQLITE_COUNTERS

_CHUNK = 500_000


def fill(url: str, *, rows: int, devices: int, say: Callable[[int], None]) -> None:
    """Write `rows` audit rows of the last ten days, oldest first. Every hundredth is a FAIL.

    `say` gets the number of rows written so far. The database must be new, because the counters are
    computed from all rows and would conflict with existing ones.
    """
    if url.startswith("sqlite:///"):
        _fill_sqlite(url.removeprefix("sqlite:///"), rows, devices, say)
        return
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute(_PARTITIONS)
        for start in range(0, rows, _CHUNK):
            end = min(rows, start + _CHUNK)
            connection.execute(
                _ROWS, {"first": start, "last": end - 1, "rows": rows, "devices": devices}
            )
            say(end)
        connection.execute(_COUNTERS)
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")  # so that none caused by the filling runs during a load


_PARTITIONS = """
DO $$
DECLARE day date;
BEGIN
    FOR day IN SELECT generate_series(current_date - 10, current_date, '1 day') LOOP
        EXECUTE format(
            'CREATE TABLE IF NOT EXISTS validation_history_%s PARTITION OF validation_history'
            ' FOR VALUES FROM (%L) TO (%L)',
            to_char(day, 'YYYYMMDD'), day::timestamptz, (day + 1)::timestamptz);
    END LOOP;
END $$
"""

# Consecutive rows name devices far apart. 7919 is prime, so every device gets its turn.
_ROWS = """
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
SELECT
    sha256(n::text::bytea) || decode(md5(n::text), 'hex'), n %% 2500, n %% 1000,
    CASE WHEN n %% 100 = 0 THEN 'FAIL' ELSE 'PASS' END,
    CASE WHEN n %% 100 = 0 THEN 'not_opened' ELSE 'genuine' END,
    CASE WHEN n %% 100 = 0 THEN NULL
         ELSE 'bench-' || lpad((n * 7919 %% %(devices)s)::text, 8, '0') END,
    now() - interval '10 days' * (1 - n::float8 / %(rows)s), '127.0.0.1'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""

_COUNTERS = """
INSERT INTO validation_counters (minute, reason, writer, times)
SELECT date_trunc('minute', validated_at), reason, 0, count(*)
FROM validation_history GROUP BY 1, 2;
INSERT INTO running_totals (counted, name, writer, times)
SELECT 'verdict', reason, 0, count(*) FROM validation_history GROUP BY 2;
INSERT INTO device_activity (day, device_serial, passes)
SELECT validated_at::date, device_serial, count(*)
FROM validation_history WHERE validation_result = 'PASS' GROUP BY 1, 2;
INSERT INTO busiest_devices (day, device_serial)
SELECT days.day, busiest.device_serial
FROM (SELECT DISTINCT day FROM device_activity) AS days
CROSS JOIN LATERAL (
    SELECT device_serial FROM device_activity WHERE device_activity.day = days.day
    ORDER BY passes DESC, device_serial LIMIT 25) AS busiest;
"""


def _fill_sqlite(path: str, rows: int, devices: int, say: Callable[[int], None]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        for start in range(0, rows, _CHUNK):
            end = min(rows, start + _CHUNK)
            connection.execute(
                _SQLITE_ROWS, {"first": start, "last": end - 1, "rows": rows, "devices": devices}
            )
            say(end)
        connection.executescript(SQLITE_COUNTERS)
        connection.execute("ANALYZE")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


_SQLITE_ROWS = """
WITH RECURSIVE numbers (n) AS (
    SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
SELECT
    randomblob(48), n % 2500, n % 1000,
    CASE WHEN n % 100 = 0 THEN 'FAIL' ELSE 'PASS' END,
    CASE WHEN n % 100 = 0 THEN 'not_opened' ELSE 'genuine' END,
    CASE WHEN n % 100 = 0 THEN NULL ELSE printf('bench-%08d', n * 7919 % :devices) END,
    strftime('%Y-%m-%d %H:%M:%f000+00:00', julianday('now') - 10.0 * (:rows - n) / :rows),
    '127.0.0.1'
FROM numbers
"""
