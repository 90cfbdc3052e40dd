"""The replay ledger: which camera tokens were seen before, and by which callers.

`validation.service` writes it in the transaction of the verdicts. `background.retention` deletes
old tokens. docs/adr/0009 explains the design.

* A new token costs one row and one statement. Only repeats are read and counted, in further
  statements.
* Lock order: each statement locks rows in the order of their digests. A batch that is judged in
  several turns runs the statements several times, so a deadlock between two processes remains
  possible. `storage.group_commit` then retries the batch.
* A token passes under one key derivation only. Its row, under the normative digest, stores which
  one. A token that was submitted under another derivation only has such a row as well, so that the
  primary key decides which of two processes was first.

The statements must never depend on a token's verdict.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Text,
    and_,
    bindparam,
    delete,
    literal_column,
    select,
    text,
    tuple_,
    update,
)

from birthmark_sma.protocol.replay import (
    DIGEST_BYTES,
    Repeat,
    SeenToken,
    classify,
    without_first_sights,
)
from birthmark_sma.storage.portable_sql import as_sqlite_text, insert_or_skip
from birthmark_sma.storage.postgresql_driver import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    execute_blocking,
)
from birthmark_sma.storage.schema import (
    lost_answers,
    resubmitted_tokens,
    sighted_tokens,
)

_first_seen_at = sighted_tokens.c.first_seen_at
_Row = TypeVar("_Row", bound=tuple[Any, ...])

_NOBODY = ""
"""The first caller of a row that exists only for its `passed_under`."""


class _Known(NamedTuple):
    """A row of the ledger, without digest and time. `passed_under` 0 means: under none yet."""

    first_caller: str
    passed_under: int


def note(
    transaction: Connection,
    sightings: Sequence[SeenToken],
    now: datetime,
    passes: Mapping[bytes, int] | None = None,
) -> tuple[list[Repeat | None], Mapping[bytes, int]]:
    """Record the tokens and their callers; return the repeats and the derivations that passed.

    `passes` maps the normative digest of each token to the number of the key derivation under which
    it passes now, or 0. The first result has an entry for each sighting, in order: None for the
    first sight of a token, or the kind of repeat. The second result maps each digest in `passes` to
    the derivation under which it passed first, which never changes. The statements are the same for
    every verdict.
    """
    passes = passes or {}
    rows: dict[bytes, _Known] = {}
    for digest, caller in sightings:
        if digest not in rows:
            rows[digest] = _Known(caller, passes.get(digest, 0))
    distinct = len(rows)
    for digest, number in passes.items():
        if digest not in rows:
            rows[digest] = _Known(_NOBODY, number)
    on_postgresql = transaction.dialect.name == "postgresql"
    insert = _insert_on_postgresql if on_postgresql else _insert_on_sqlite
    fresh = insert(transaction, sorted(rows.items()), now)  # sorted: the lock order
    # Fast path: every row is new, and no token occurs twice in the batch.
    if len(fresh) == len(rows) and distinct == len(sightings):
        return [None] * len(sightings), passes
    known = {digest: rows[digest] for digest in fresh}
    first_sights = set(fresh)
    if len(fresh) < len(rows):
        there = [digest for digest in sorted(rows) if digest not in known]
        known |= _catch_up(transaction, there, rows, first_sights)
    repeats = without_first_sights(sightings, first_sights)
    times = Counter(each for each in repeats if each is not None)
    count = _count_on_postgresql if on_postgresql else _count_on_sqlite
    brought_before = {
        sighting
        for sighting, number in (count(transaction, times, now) if times else ())
        # Counted more often than in this batch: this caller repeated the token before.
        if number > times[sighting]
        or (sighting.digest in known and known[sighting.digest].first_caller == sighting.caller)
    }
    passed = {digest: known.get(digest, rows[digest]).passed_under for digest in passes}
    return classify(repeats, brought_before), passed


def _catch_up(
    transaction: Connection,
    digests: Sequence[bytes],
    rows: Mapping[bytes, _Known],
    first_sights: set[bytes],
) -> dict[bytes, _Known]:
    """Read existing rows, and complete those without a first caller or a derivation.

    Incomplete rows are read again under a row lock, because another process may complete them at
    the same time. A derivation is never replaced. Digests that get their first caller here are
    added to `first_sights`.
    """
    on_postgresql = transaction.dialect.name == "postgresql"
    read = _read_on_postgresql if on_postgresql else _read_on_sqlite
    known = read(transaction, digests)
    lacking = [digest for digest, row in known.items() if _complete(row, rows[digest]) != row]
    if not lacking:
        return known
    if on_postgresql:  # SQLite has one writer, which already holds the write lock
        known |= _read_on_postgresql(transaction, sorted(lacking), lock=" ORDER BY 1 FOR UPDATE")
    complete = {digest: _complete(known[digest], rows[digest]) for digest in lacking}
    first_sights |= {
        digest
        for digest in lacking
        if known[digest].first_caller == _NOBODY != complete[digest].first_caller
    }
    change = update(sighted_tokens).where(sighted_tokens.c.digest == bindparam("place"))
    transaction.execute(
        change, [{"place": digest, **row._asdict()} for digest, row in sorted(complete.items())]
    )
    return known | complete


def _complete(row: _Known, brought: _Known) -> _Known:
    return _Known(
        row.first_caller or brought.first_caller, row.passed_under or brought.passed_under
    )


def note_lost_answers(transaction: Connection, sightings: Set[SeenToken]) -> None:
    """Record the tokens and callers whose verdict did not reach the caller. Idempotent."""
    if sightings:
        rows = [each._asdict() for each in sorted(sightings)]
        transaction.execute(insert_or_skip(transaction, lost_answers), rows)


def take_lost_answers(transaction: Connection, sightings: Set[SeenToken]) -> set[SeenToken]:
    """Delete the lost answers of these tokens and callers, and return those that were deleted.

    Of two processes that take the same one, only one gets it.
    """
    pair = tuple_(lost_answers.c.digest, lost_answers.c.caller)
    taking = (
        delete(lost_answers)
        .where(pair.in_([tuple(each) for each in sorted(sightings)]))
        .returning(lost_answers.c.digest, lost_answers.c.caller)
    )
    return {SeenToken(*row) for row in transaction.execute(taking)}


# --- PostgreSQL

# The result is one value, the concatenated digests of the new rows: fewer values to read.
_INSERT_ON_POSTGRESQL = """
WITH noted AS (
    INSERT INTO sighted_tokens (digest, first_caller, first_seen_at, passed_under)
    SELECT digest, caller, ($4::timestamptz[])[1], passed_under
    FROM unnest($1::bytea[], $2::text[], $3::integer[]) AS brought (digest, caller, passed_under)
    ON CONFLICT (digest) DO NOTHING RETURNING digest
)
SELECT string_agg(digest, '') FROM noted
"""
_READ_ON_POSTGRESQL = """
SELECT digest, first_caller, CAST(passed_under AS text) FROM sighted_tokens
WHERE digest = ANY($1::bytea[])"""
_COUNT_ON_POSTGRESQL = """
INSERT INTO resubmitted_tokens AS counted (digest, caller, times, last_seen_at)
SELECT digest, caller, times, ($4::timestamptz[])[1]
FROM unnest($1::bytea[], $2::text[], $3::integer[]) AS brought (digest, caller, times)
ON CONFLICT (digest, caller)
DO UPDATE SET times = counted.times + excluded.times, last_seen_at = excluded.last_seen_at
RETURNING digest, caller, CAST(times AS text)
"""


def _insert_on_postgresql(
    transaction: Connection, rows: Sequence[tuple[bytes, _Known]], now: datetime
) -> Set[bytes]:
    parameters = (
        array_of_bytes([digest for digest, _ in rows]),
        array_of_text([row.first_caller for _, row in rows]),
        array_of_integers([row.passed_under for _, row in rows]),
        array_of_times([now]),
    )
    noted = execute_blocking(transaction, _INSERT_ON_POSTGRESQL, parameters).get_value(0, 0) or b""
    size = DIGEST_BYTES
    return {noted[start : start + size] for start in range(0, len(noted), size)}


def _read_on_postgresql(
    transaction: Connection, digests: Sequence[bytes], lock: str = ""
) -> dict[bytes, _Known]:
    # This must be a statement of its own: the INSERT may have waited for another process's commit,
    # and only a later statement sees the rows of that commit.
    found = execute_blocking(transaction, _READ_ON_POSTGRESQL + lock, [array_of_bytes(digests)])
    values = ([found.get_value(row, at) or b"" for at in range(3)] for row in range(found.ntuples))
    return {digest: _Known(caller.decode(), int(passed)) for digest, caller, passed in values}


def _count_on_postgresql(
    transaction: Connection, times: Counter[SeenToken], now: datetime
) -> Iterator[tuple[SeenToken, int]]:
    counts = sorted(times.items())
    digests, callers = zip(*(sighting for sighting, _ in counts), strict=True)
    parameters = (
        array_of_bytes(digests),
        array_of_text(callers),
        array_of_integers([number for _, number in counts]),
        array_of_times([now]),
    )
    counted = execute_blocking(transaction, _COUNT_ON_POSTGRESQL, parameters)
    for row in range(counted.ntuples):
        digest, caller, number = (counted.get_value(row, column) or b"" for column in range(3))
        yield SeenToken(digest, caller.decode()), int(number)


# --- SQLite: one writer at a time, so no row locks. A statement takes many rows. Only five sizes
# exist, because the driver caches prepared statements by their text.

_SIZES = (256, 64, 16, 4, 1)
_INSERT_ON_SQLITE = """
INSERT INTO sighted_tokens (digest, first_caller, first_seen_at, passed_under) VALUES {}
ON CONFLICT (digest) DO NOTHING
"""
# SQLite gives each new row the next rowid, so the rows just inserted have the highest ones.
_FRESH_ON_SQLITE = """
SELECT json_group_array(hex(digest)) FROM sighted_tokens
WHERE rowid > (SELECT max(rowid) FROM sighted_tokens) - ?
"""
_READ_ON_SQLITE = """
SELECT json_group_array(json_array(hex(digest), first_caller, passed_under))
FROM sighted_tokens WHERE digest IN (VALUES {})
"""
_COUNT_ON_SQLITE = """
INSERT INTO resubmitted_tokens (digest, caller, times, last_seen_at) VALUES {}
ON CONFLICT (digest, caller)
DO UPDATE SET times = times + excluded.times, last_seen_at = excluded.last_seen_at
"""
_COUNTED_ON_SQLITE = """
WITH brought (digest, caller) AS (VALUES {})
SELECT json_group_array(json_array(hex(digest), caller, times))
FROM brought CROSS JOIN resubmitted_tokens USING (digest, caller)
"""


def _insert_on_sqlite(
    transaction: Connection, rows: Sequence[tuple[bytes, _Known]], now: datetime
) -> Set[bytes]:
    time = as_sqlite_text(now)
    values = [(digest, row.first_caller, time, row.passed_under) for digest, row in rows]
    noted = sum(
        transaction.exec_driver_sql(statement, part).rowcount
        for statement, part in _in_parts(_INSERT_ON_SQLITE, values)
    )
    if noted == len(rows):
        return frozenset(digest for digest, _ in rows)
    fresh = transaction.exec_driver_sql(_FRESH_ON_SQLITE, (noted,)).scalar_one()
    return {bytes.fromhex(digest) for digest in json.loads(fresh)}


def _read_on_sqlite(transaction: Connection, digests: Sequence[bytes]) -> dict[bytes, _Known]:
    known = {}
    for statement, values in _in_parts(_READ_ON_SQLITE, [(digest,) for digest in digests]):
        found = transaction.exec_driver_sql(statement, values).scalar_one()
        for digest, *row in json.loads(found):
            known[bytes.fromhex(digest)] = _Known(*row)
    return known


def _count_on_sqlite(
    transaction: Connection, times: Counter[SeenToken], now: datetime
) -> Iterator[tuple[SeenToken, int]]:
    time = as_sqlite_text(now)
    counts = [(*sighting, number, time) for sighting, number in sorted(times.items())]
    for statement, values in _in_parts(_COUNT_ON_SQLITE, counts):
        transaction.exec_driver_sql(statement, values)
    for statement, values in _in_parts(_COUNTED_ON_SQLITE, [each[:2] for each in counts]):
        counted = transaction.exec_driver_sql(statement, values).scalar_one()
        for digest, caller, number in json.loads(counted):
            yield SeenToken(bytes.fromhex(digest), caller), number


def _in_parts(statement: str, rows: Sequence[_Row]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield statements for all rows, each with the parameters of up to 256 rows."""
    row = f"({', '.join('?' * len(rows[0]))})"
    start = 0
    while start < len(rows):
        size = next(size for size in _SIZES if size <= len(rows) - start)
        part = rows[start : start + size]
        yield statement.format(", ".join([row] * size)), tuple(chain.from_iterable(part))
        start += size


# --- retention


def find_old(connection: Connection, before: datetime, *, limit: int) -> list[Any]:
    """Return the row ids (`ctid` or `rowid`) of up to `limit` tokens first seen before a time.

    On SQLite only the `limit` rows with the lowest rowids, which were written first, are checked.
    """
    if connection.dialect.name == "postgresql":
        # Without a sequential scan the planner uses the BRIN index on the time, whatever number of
        # rows it expects. If no row is old, only few pages are then read.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        place = literal_column("ctid", Text())
        old = select(place).select_from(sighted_tokens).where(_first_seen_at < before)
        return list(connection.execute(old.limit(limit)).scalars())
    oldest = (
        select(literal_column("rowid").label("place"), _first_seen_at)
        .select_from(sighted_tokens)
        .order_by(literal_column("rowid"))
        .limit(limit)
        .subquery()
    )
    found = select(oldest.c.place).where(oldest.c.first_seen_at < before)
    return list(connection.execute(found).scalars())


def forget(transaction: Connection, places: Sequence[Any], before: datetime) -> int:
    """Delete the tokens that `find_old` found, with their repeats; return the number of tokens.

    A newer row that has taken over a row id since `find_old` is kept.
    """
    if transaction.dialect.name == "postgresql":
        there = text("ctid = ANY(CAST(:places AS tid[]))").bindparams(places=list(places))
        old = and_(there, _first_seen_at < before)
    else:
        old = and_(literal_column("rowid").in_(places), _first_seen_at < before)
    gone = delete(sighted_tokens).where(old).returning(sighted_tokens.c.digest)
    digests = list(transaction.execute(gone).scalars())
    for table in (resubmitted_tokens, lost_answers):
        transaction.execute(delete(table).where(table.c.digest.in_(digests)))
    return len(digests)
