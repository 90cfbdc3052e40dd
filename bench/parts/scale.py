"""A large fleet with a long history beside a small one with none, and `/stats` on both."""

import time
from contextlib import ExitStack

import httpx2
import psycopg

from bench.closed import Case, Side, measure_in_turn, write_bodies
from bench.figures import POSTGRESQL, Series
from bench.parts.stage import Filled, Stage
from birthmark_sma.pki.signer import CaKeyType
from birthmark_sma.web.validate import PATH

SMALL = "small fleet"
LARGE = "large fleet"
CONNECTIONS = 128
_SMALL_DEVICES = 1_000
_STATS_TIMES = 50
_STATS_SECONDS = 60
_DAYS = 10
_CHUNK = 500_000


def measure(stage: Stage) -> None:
    """Measure both in turn, on one PostgreSQL."""
    options = stage.options
    small = stage.filled("small", devices=_SMALL_DEVICES, key_type=CaKeyType.EC_P256)
    large = stage.filled("large", devices=options.scale_devices, key_type=CaKeyType.EC_P256)
    _fill_history(stage, large)
    with ExitStack() as running:
        cases = []
        for name, filled in ((SMALL, small), (LARGE, large)):
            server = running.enter_context(filled.site.serve())
            side = Side(name, server.url, server.process.pid, filled.site)
            bodies = write_bodies(stage.folder / f"{name}.jsonl", filled.bodies)
            cases.append(Case(side, PATH, bodies, Series(name, POSTGRESQL, CONNECTIONS)))
        measure_in_turn(
            stage.report, cases, rounds=options.rounds, seconds=options.seconds, say=stage.say
        )
        for case in cases:
            _time_stats(stage, case.side)


def stats_name(side: str) -> str:
    """Return the name of the reading of `/stats`."""
    return f"/stats, {side}"


def _fill_history(stage: Stage, filled: Filled) -> None:
    """Write rows such as validation leaves, of the last ten days, oldest first."""
    rows, devices = stage.options.scale_rows, stage.options.scale_devices
    with psycopg.connect(filled.site.database_url, autocommit=True) as connection:
        for start in range(0, rows, _CHUNK):
            end = min(rows, start + _CHUNK)
            connection.execute(
                _ROWS, {"first": start, "last": end - 1, "rows": rows, "devices": devices}
            )
            stage.say(f"history: {end:,} of {rows:,} rows")
        connection.execute("VACUUM (ANALYZE) validation_history")
        connection.execute("CHECKPOINT")


# Numbers far apart name the devices: 7919 is prime, so they come round to each.
_ROWS = f"""
INSERT INTO validation_history (
    encrypted_nuc_hash, table_id, key_index, validation_result, reason, device_serial,
    validated_at, request_ip)
SELECT
    sha256(n::text::bytea) || decode(md5(n::text), 'hex'), n %% 2500, n %% 1000,
    CASE WHEN n %% 100 = 0 THEN 'FAIL' ELSE 'PASS' END,
    CASE WHEN n %% 100 = 0 THEN 'not_opened' ELSE 'genuine' END,
    CASE WHEN n %% 100 = 0 THEN NULL
         ELSE 'bench-' || lpad((n * 7919 %% %(devices)s)::text, 8, '0') END,
    now() - interval '{_DAYS} days' * (1 - n::float8 / %(rows)s), '127.0.0.1'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""


def _time_stats(stage: Stage, side: Side) -> None:
    began = time.perf_counter()
    with httpx2.Client(base_url=side.url, trust_env=False, timeout=60) as client:
        for _ in range(_STATS_TIMES):
            asked = time.perf_counter()
            answer = client.get("/stats")
            stage.report.read(stats_name(side.name), "ms", (time.perf_counter() - asked) * 1e3)
            if answer.status_code != 200:
                stage.report.faults.append(f"{stats_name(side.name)}: {answer.status_code}")
            if time.perf_counter() - began > _STATS_SECONDS:
                break
    stage.say(f"{stats_name(side.name)}: {stage.report.reading(stats_name(side.name)):.1f} ms")
