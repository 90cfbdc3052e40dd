"""Measure the cost of the replay ledger: the same server with and without it, in turn.

Every token of a round is new, as with cameras. The ledger is filled before, as after some time of
use. Dual submissions are tokens that another caller submitted before the round.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count

from sqlalchemy import text

from bench import fleet
from bench.closed import Case, Side, measure_in_turn, write_bodies
from bench.figures import POSTGRESQL, SQLITE, Series
from bench.parts.stage import Filled, Stage
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.protocol.camera_token import token_digest
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.web.api.models.validation import ValidateNucRequest
from birthmark_sma.web.api.validate import PATH
from tests.support.programs.server import REAL_SMA

WITHOUT = "without ledger"
WITH = "with ledger"
DUAL = "with ledger, half dual submissions"
CONNECTIONS = 128
_FORGETFUL = (sys.executable, "-m", "bench.without_ledger")
_MOST_PER_SECOND = 16_000  # tokens made for each second of a round, so that none repeats
_CHUNK = 5_000


def measure(stage: Stage) -> None:
    """Measure on each database: without ledger, with ledger, and with half dual submissions."""
    with ExitStack() as running:
        cases: list[Case] = []
        preparations = []
        for database in (POSTGRESQL, SQLITE):
            filled = stage.main() if database == POSTGRESQL else stage.on_sqlite()
            _fill_ledger(filled, stage.options.ledger_rows)
            more, prepare = _cases(stage, running, database, filled)
            cases += more
            preparations.append(prepare)

        def prepare_all() -> None:
            for each in preparations:
                each()

        measure_in_turn(stage, cases, prepare=prepare_all)


def _cases(
    stage: Stage, running: ExitStack, database: str, filled: Filled
) -> tuple[list[Case], Callable[[], None]]:
    """Start the servers. Return the cases, and the function that makes new tokens for them."""
    new = stage.folder / f"replay-{database}-new.jsonl"
    dual = stage.folder / f"replay-{database}-dual.jsonl"
    numbers = count(1)
    cases = []
    for name, program in ((WITHOUT, _FORGETFUL), (WITH, REAL_SMA)):
        server = running.enter_context(filled.site.serve(program=program))
        side = Side(name, server.url, server.process.pid, filled.site)
        cases.append(
            Case(side, PATH, new, Series(name, database, CONNECTIONS), tokens_repeat=False)
        )
    cases.append(Case(side, PATH, dual, Series(DUAL, database, CONNECTIONS), tokens_repeat=False))
    how_many = round(_MOST_PER_SECOND * stage.options.seconds)

    def prepare() -> None:
        stage.say(f"making {how_many:,} camera tokens twice for {database}")
        with filled.site.opened() as authority:
            for path in (new, dual):
                seed = next(numbers) + 2
                bodies = fleet.bodies(authority, filled.cameras, how_many, seed=seed)
                write_bodies(path, bodies)
            # `bodies` are those of the last path, `dual`: every second one was submitted before.
            _bring_before(filled, bodies[::2])

    return cases, prepare


def _bring_before(filled: Filled, bodies: list[bytes]) -> None:
    """Note these tokens in the ledger as submitted by another caller."""
    with filled.site.opened() as authority, authority.database.write() as transaction:
        for start in range(0, len(bodies), _CHUNK):
            tokens = [
                ValidateNucRequest.model_validate_json(body).camera_token()
                for body in bodies[start : start + _CHUNK]
            ]
            sightings = [SeenToken(token_digest(token), "ip:192.0.2.1") for token in tokens]
            replay_ledger.note(
                make_store(authority.database), transaction, sightings, datetime.now(UTC)
            )


_ROWS_ON_POSTGRESQL = """
INSERT INTO sighted_tokens (digest, first_caller, first_seen_at)
SELECT decode(md5(random()::text || n), 'hex'), 'ip:192.0.2.' || n % 8, now() - interval '1 day'
FROM generate_series(1, :rows) AS n
"""
_ROWS_ON_SQLITE = """
INSERT INTO sighted_tokens (digest, first_caller, first_seen_at)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :rows)
SELECT randomblob(16), 'ip:192.0.2.' || n % 8, '2026-01-01 00:00:00.000000+00:00' FROM numbers
"""


def _fill_ledger(filled: Filled, rows: int) -> None:
    """Fill the ledger with `rows` tokens, as after some time of use."""
    with filled.site.opened() as authority:
        statement = _ROWS_ON_SQLITE if filled.site.uses_sqlite else _ROWS_ON_POSTGRESQL
        with authority.database.write() as transaction:
            transaction.execute(text(statement), {"rows": rows})
