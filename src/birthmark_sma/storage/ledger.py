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

from sqlalchemy import Connection

from birthmark_sma.protocol.repeat import Repeat, Sighting, classify, without_first_sights
from birthmark_sma.storage.postgresql import (
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    at_once,
)
from birthmark_sma.storage.schema import as_sqlite_text

_Row = TypeVar("_Row", bound=tuple[Any, ...])


def note(
    transaction: Connection, sightings: Sequence[Sighting], now: datetime
) -> list[Repeat | None]:
    """Write sightings down; say of each whether it is a first sight, which is None, or a repeat.

    Whatever the tokens' verdicts, the statements are the same.
    """
    on_postgresql = transaction.dialect.name == "postgresql"
    first_callers: dict[bytes, str] = {}
    for digest, caller in sightings:
        first_callers.setdefault(digest, caller)
    first_sights = [Sighting(*each) for each in sorted(first_callers.items())]
    note_first = _note_first_on_postgresql if on_postgresql else _note_first_on_sqlite
    fresh = note_first(transaction, first_sights, now)
    if len(fresh) == len(sightings):
        return [None] * len(sightings)
    repeats = without_first_sights(sightings, fresh)
    times = Counter(each for each in repeats if each is not None)
    count = _count_on_postgresql if on_postgresql else _count_on_sqlite
    return classify(repeats, count(transaction, times, now))


# --- PostgreSQL

_NOTE_FIRST_ON_POSTGRESQL = """
INSERT INTO sighted_tokens (digest, first_caller, first_seen_at)
SELECT digest, caller, ($3::timestamptz[])[1]
FROM unnest($1::bytea[], $2::text[]) AS brought (digest, caller)
ON CONFLICT (digest) DO NOTHING RETURNING digest
"""
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


def _note_first_on_postgresql(
    transaction: Connection, first_sights: Sequence[Sighting], now: datetime
) -> Set[bytes]:
    digests, callers = zip(*first_sights, strict=True)
    parameters = (array_of_bytes(digests), array_of_text(callers), array_of_times([now]))
    noted = at_once(transaction, _NOTE_FIRST_ON_POSTGRESQL, parameters)
    if noted.ntuples == len(digests):
        return frozenset(digests)
    return {noted.get_value(row, 0) or b"" for row in range(noted.ntuples)}


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
