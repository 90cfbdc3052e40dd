"""Measure what a token costs: CPU of server and database, bytes of WAL, rows and bytes of tables.

docs/operate/scaling.md reckons with these figures.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from bench import fleet, wrk
from bench.closed import write_bodies
from bench.figures import POSTGRESQL
from bench.parts.stage import Stage
from bench.processes import cpu_seconds, wait_until_calm
from bench.sites import Site
from birthmark_sma.web.api.validate import BATCH_PATH, PATH
from tests.support.programs.server import Server

_TABLES = (
    *("validation_history", "sighted_tokens", "resubmitted_tokens", "device_activity"),
    *("validation_counters", "running_totals"),
)
_BATCH = 1_000
_CONNECTIONS = 128
_CALM_SECONDS = 30


def measure(stage: Stage) -> None:
    """Measure one process, with single tokens on many connections and with batches on few."""
    filled = stage.main()
    singles = write_bodies(stage.folder / "cost.jsonl", filled.bodies)
    batches = write_bodies(
        stage.folder / "cost-batches.jsonl", fleet.batches(filled.bodies, _BATCH)
    )
    loads = (
        _Load("single", PATH, singles, _CONNECTIONS),
        _Load("batch", BATCH_PATH, batches, stage.options.batch_connections),
    )
    with filled.site.serve("--workers", "1") as server:
        for _ in range(stage.options.rounds):
            for load in loads:
                _measure(stage, filled.site, server, load)


@dataclass(frozen=True, slots=True)
class _Load:
    kind: str
    path: str
    bodies: Path
    connections: int


def _measure(stage: Stage, site: Site, server: Server, load: _Load) -> None:
    database = site.database_pid
    assert database is not None
    site.forget_tokens()
    with psycopg.connect(site.database_url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")  # each round then has the same full-page images to write
        before = _Figures(connection)
        pid = server.process.pid
        cpu = cpu_seconds(pid), cpu_seconds(database)
        url, seconds = server.url + load.path, stage.options.seconds
        result = wrk.load(url, load.bodies, connections=load.connections, seconds=seconds)
        wait_until_calm(pid, _CALM_SECONDS)
        spent = cpu_seconds(pid) - cpu[0], cpu_seconds(database) - cpu[1]
        after = _Figures(connection)
    tokens = after.rows["validation_history"] - before.rows["validation_history"]
    read, kind = stage.report.read, load.kind
    read(f"{kind}, {POSTGRESQL}: tokens", "a second", tokens / result.seconds)
    read(f"{kind}: CPU of the server", "us a token", spent[0] / tokens * 1e6)
    read(f"{kind}: CPU of PostgreSQL", "us a token", spent[1] / tokens * 1e6)
    read(f"{kind}: tokens a commit", "", tokens / max(1, after.commits - before.commits))
    read(f"{kind}: WAL", "bytes a token", (after.wal - before.wal) / tokens)
    read(f"{kind}: WAL records", "a token", (after.records - before.records) / tokens)
    read(f"{kind}: full pages in the WAL", "a token", (after.pages - before.pages) / tokens)
    for table in _TABLES:
        rows = after.rows[table] - before.rows[table]
        read(f"{kind}: new rows, {table}", "a token", rows / tokens)
        if rows > tokens / 2:
            size = (after.sizes[table] - before.sizes[table]) / rows
            read(f"{kind}: size, {table}", "bytes a row", size)


class _Figures:
    """The counters of PostgreSQL at one moment. Sizes include indexes and partitions."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.rows: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        for table in _TABLES:
            count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            self.rows[table] = _number(connection, count)
            self.sizes[table] = _number(
                connection,
                "SELECT sum(pg_total_relation_size(relid)) FROM"
                " (SELECT to_regclass(%(table)s) AS relid UNION SELECT inhrelid FROM pg_inherits"
                " WHERE inhparent = to_regclass(%(table)s)) AS all_",
                table=table,
            )
        # Backends report these a second late at most.
        connection.execute("SELECT pg_sleep(1.2), pg_stat_clear_snapshot()")
        self.wal = _number(connection, "SELECT wal_bytes FROM pg_stat_wal")
        self.records = _number(connection, "SELECT wal_records FROM pg_stat_wal")
        self.pages = _number(connection, "SELECT wal_fpi FROM pg_stat_wal")
        self.commits = _number(
            connection,
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
        )


def _number(
    connection: psycopg.Connection, query: LiteralString | sql.Composed, **parameters: str
) -> int:
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return int(row[0])
