"""The replay ledger: which camera tokens were seen before, and who brought them.

A token that nobody brought before, which most are, costs one row and nothing else. Only where some
were brought before, these are counted in a second step. Rows are taken in the order of their
digests, so that two programs never wait for each other.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Text,
    and_,
    delete,
    literal_column,
    select,
    text,
    tuple_,
)

from birthmark_sma.protocol.repeat import (
    DIGEST_BYTES,
    Repeat,
    Sighting,
    classify,
    without_first_sights,
)
from birthmark_sma.storage.dialects import insert_or_skip
from birthmark_sma.storage.postgresql import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    at_once,
)
from birthmark_sma.storage.schema import (
    as_sqlite_text,
    lost_answers,
    resubmitted_tokens,
    sighted_tokens,
)
from birthmark_sma.storage.standings import (
    ON_POSTGRESQL,
    DeviceStanding,
    find_standings,
    read_standings,
)

_first_seen_at = sighted_tokens.c.first_seen_at
_Row = TypeVar("_Row", bound=tuple[Any, ...])


def look_up(
    transaction: Connection,
    sightings: Sequence[Sighting],
    nuc_hashes: Sequence[bytes],
    now: datetime,
) -> tuple[dict[bytes, DeviceStanding], list[Repeat | None]]:
    """Write sightings down, and find the devices with these HMACs of their NUC hash.

    Says of each sighting whether it is a first sight, which is None, or a repeat. Whatever the
    tokens' verdicts will be, the statements are the same.
    """
    on_postgresql = transaction.dialect.name == "postgresql"
    first_callers: dict[bytes, str] = {}
    for digest, caller in sightings:
        first_callers.setdefault(digest, caller)
    first_sights = [Sighting(*each) for each in sorted(first_callers.items())]
    begin = _begin_on_postgresql if on_postgresql else _begin_on_sqlite
    standings, fresh = begin(transaction, first_sights, nuc_hashes, now)
    if len(fresh) == len(sightings):
        return standings, [None] * len(sightings)
    repeats = without_first_sights(sightings, fresh)
    times = Counter(each for each in repeats if each is not None)
    count = _count_on_postgresql if on_postgresql else _count_on_sqlite
    return standings, classify(repeats, count(transaction, times, now))


def note(
    transaction: Connection, sightings: Sequence[Sighting], now: datetime
) -> list[Repeat | None]:
    """Write sightings down as `look_up` does, without asking for devices."""
    return look_up(transaction, sightings, [], now)[1]


def note_lost_answers(transaction: Connection, sightings: Set[Sighting]) -> None:
    """Write down whose verdicts did not reach their callers."""
    if sightings:
        rows = [each._asdict() for each in sorted(sightings)]
        transaction.execute(insert_or_skip(transaction, lost_answers), rows)


def take_lost_answers(transaction: Connection, sightings: Set[Sighting]) -> set[Sighting]:
    """Return for which of these a verdict was lost, and forget that it was."""
    pair = tuple_(lost_answers.c.digest, lost_answers.c.caller)
    taking = (
        delete(lost_answers)
        .where(pair.in_([tuple(each) for each in sorted(sightings)]))
        .returning(lost_answers.c.digest, lost_answers.c.caller)
    )
    return {Sighting(*row) for row in transaction.execute(taking)}


# --- PostgreSQL

# Together, as each call of a driver costs as much as judging some tokens. The last row has the
# digests that were new, one after the other.
_BEGIN_ON_POSTGRESQL = "".join(
    (
        """
WITH noted AS (
    INSERT INTO sighted_tokens (digest, first_caller, first_seen_at)
    SELECT digest, caller, ($4::timestamptz[])[1]
    FROM unnest($2::bytea[], $3::text[]) AS brought (digest, caller)
    ON CONFLICT (digest) DO NOTHING RETURNING digest
)""",
        ON_POSTGRESQL,
        "UNION ALL SELECT string_agg(digest, ''), NULL, NULL, NULL, NULL FROM noted",
    )
)
# A statement of its own, as only a later one sees what another program wrote for which the first
# one waited.
_COUNT_ON_POSTGRESQL = """
INSERT INTO resubmitted_tokens AS counted (digest, caller, times, last_seen_at)
SELECT digest, caller, times, ($4::timestamptz[])[1]
FROM unnest($1::bytea[], $2::text[], $3::integer[]) AS brought (digest, caller, times)
ON CONFLICT (digest, caller)
DO UPDATE SET times = counted.times + excluded.times, last_seen_at = excluded.last_seen_at
RETURNING digest, caller, CAST(times AS text),
    (SELECT first_caller FROM sighted_tokens WHERE sighted_tokens.digest = counted.digest)
"""


def _begin_on_postgresql(
    transaction: Connection,
    first_sights: Sequence[Sighting],
    nuc_hashes: Sequence[bytes],
    now: datetime,
) -> tuple[dict[bytes, DeviceStanding], Set[bytes]]:
    digests, callers = zip(*first_sights, strict=True)
    parameters = (
        array_of_bytes(nuc_hashes),
        array_of_bytes(digests),
        array_of_text(callers),
        array_of_times([now]),
    )
    found = at_once(transaction, _BEGIN_ON_POSTGRESQL, parameters)
    devices = found.ntuples - 1
    noted = found.get_value(devices, 0) or b""
    size = DIGEST_BYTES
    fresh = {noted[start : start + size] for start in range(0, len(noted), size)}
    return read_standings(found, devices), fresh


def _count_on_postgresql(
    transaction: Connection, times: Counter[Sighting], now: datetime
) -> Set[Sighting]:
    counts = sorted(times.items())
    digests, callers = zip(*(sighting for sighting, _ in counts), strict=True)
    parameters = (
        array_of_bytes(digests),
        array_of_text(callers),
        array_of_integers([number for _, number in counts]),
        array_of_times([now]),
    )
    counted = at_once(transaction, _COUNT_ON_POSTGRESQL, parameters)
    brought_before = set()
    for row in range(counted.ntuples):
        digest, caller, number, first_caller = (
            counted.get_value(row, column) or b"" for column in range(4)
        )
        sighting = Sighting(digest, caller.decode())
        if caller == first_caller or int(number) > times[sighting]:
            brought_before.add(sighting)
    return brought_before


# --- SQLite: one writer at a time. Many rows a statement, but of a few sizes only, as it keeps
# statements prepared by their text.

_SIZES = (256, 64, 16, 4, 1)
_NOTE_FIRST_ON_SQLITE = """
INSERT INTO sighted_tokens (digest, first_caller, first_seen_at) VALUES {}
ON CONFLICT (digest) DO NOTHING
"""
# Every new row gets the next number, so those just written have the highest.
_FRESH_ON_SQLITE = """
SELECT json_group_array(hex(digest)) FROM sighted_tokens
WHERE rowid > (SELECT max(rowid) FROM sighted_tokens) - ?
"""
_COUNT_ON_SQLITE = """
INSERT INTO resubmitted_tokens (digest, caller, times, last_seen_at) VALUES {}
ON CONFLICT (digest, caller)
DO UPDATE SET times = times + excluded.times, last_seen_at = excluded.last_seen_at
"""
_COUNTED_ON_SQLITE = """
WITH brought (digest, caller) AS (VALUES {})
SELECT json_group_array(json_array(hex(digest), caller, times, first_caller))
FROM brought CROSS JOIN resubmitted_tokens USING (digest, caller)
LEFT JOIN sighted_tokens USING (digest)
"""


def _begin_on_sqlite(
    transaction: Connection,
    first_sights: Sequence[Sighting],
    nuc_hashes: Sequence[bytes],
    now: datetime,
) -> tuple[dict[bytes, DeviceStanding], Set[bytes]]:
    fresh = _note_first_on_sqlite(transaction, first_sights, now)
    return find_standings(transaction, nuc_hashes), fresh


def _note_first_on_sqlite(
    transaction: Connection, first_sights: Sequence[Sighting], now: datetime
) -> Set[bytes]:
    time = as_sqlite_text(now)
    noted = sum(
        transaction.exec_driver_sql(statement, values).rowcount
        for statement, values in _in_parts(
            _NOTE_FIRST_ON_SQLITE, [(*each, time) for each in first_sights]
        )
    )
    if noted == len(first_sights):
        return frozenset(digest for digest, _ in first_sights)
    fresh = transaction.exec_driver_sql(_FRESH_ON_SQLITE, (noted,)).scalar_one()
    return {bytes.fromhex(digest) for digest in json.loads(fresh)}


def _count_on_sqlite(
    transaction: Connection, times: Counter[Sighting], now: datetime
) -> Set[Sighting]:
    time = as_sqlite_text(now)
    counts = [(*sighting, number, time) for sighting, number in sorted(times.items())]
    for statement, values in _in_parts(_COUNT_ON_SQLITE, counts):
        transaction.exec_driver_sql(statement, values)
    brought_before = set()
    for statement, values in _in_parts(_COUNTED_ON_SQLITE, [each[:2] for each in counts]):
        counted = transaction.exec_driver_sql(statement, values).scalar_one()
        for digest, caller, number, first_caller in json.loads(counted):
            sighting = Sighting(bytes.fromhex(digest), caller)
            if caller == first_caller or number > times[sighting]:
                brought_before.add(sighting)
    return brought_before


def _in_parts(statement: str, rows: Sequence[_Row]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield statements with as many rows of parameters as they have room for, and these."""
    row = f"({', '.join('?' * len(rows[0]))})"
    start = 0
    while start < len(rows):
        size = next(size for size in _SIZES if size <= len(rows) - start)
        part = rows[start : start + size]
        yield statement.format(", ".join([row] * size)), tuple(chain.from_iterable(part))
        start += size


# --- what is old


def find_old(connection: Connection, before: datetime, *, limit: int) -> list[Any]:
    """Return where up to `limit` tokens are written that were first seen before a time.

    On SQLite only the oldest `limit` are looked at, in the order in which they were written.
    """
    if connection.dialect.name == "postgresql":
        # However many the planner expects: where none is old, few pages should be read.
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
    """Delete tokens that `find_old` found, and all that is known of their repeats; say how many.

    What came into their place meanwhile is newer, and stays.
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
