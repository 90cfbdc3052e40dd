"""The statements of validation on SQLite. `store.ValidationStore` says what each must do.

SQLite has one writer at a time, which holds the write lock from the start of its transaction. So
rows need no locks. Each call of the driver may lose the interpreter's lock to a busy event loop, so
a statement takes many rows, and rows come back as one JSON value. Statements must be built from the
fields of the records.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Transaction,
    and_,
    delete,
    literal_column,
    select,
)

from birthmark_sma.authority.audit_chain.batches import AuditBatch
from birthmark_sma.authority.audit_chain.writer_chain import WriterChain
from birthmark_sma.authority.devices.activity import DeviceCount
from birthmark_sma.authority.validation.records import (
    AuditRow,
    FoundDevice,
    FoundDevices,
    LedgerEntry,
    count_batch,
)
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.portable_sql import UtcDateTime, as_sqlite_text
from birthmark_sma.storage.schema.validations import sighted_tokens, validation_history

_WRITERS = 1 << 15  # the non-negative values of the column's type, smallint
_first_seen_at = sighted_tokens.c.first_seen_at
_SIZES = (256, 64, 16, 4, 1)
"""The numbers of rows that a statement takes: few, because the driver caches prepared statements by
their text."""

_ENTRY = ", ".join(LedgerEntry._fields)
# The number of parameters is a power of two, for the same reason. Unused ones are NULL, which
# equals nothing.
# After the ids of all batches, too: SQLite would use the ids of deleted rows again.
_FIRST_ID = """(SELECT 1 + max(
    coalesce((SELECT max(id) FROM validation_history), 0),
    coalesce((SELECT first_id + rows - 1 FROM audit_batches WHERE kind = 'validations'
              ORDER BY rowid DESC LIMIT 1), 0)))"""
_SELECT_FIRST_ID = _FIRST_ID[1:-1]
# The first id of the batch comes with the devices: another statement would cost more than to hash
# the rows of a small batch.
_FIND_DEVICES = """
SELECT json_array((SELECT table_generation FROM authority), {first_id}, json_group_array(json_array(
    hex(nuc_hash), device_serial, device_family, status, json(table_assignments),
    json(table_epochs))))
FROM registered_devices WHERE nuc_hash IN ({})
"""

_ADD_TOKENS = """
INSERT INTO sighted_tokens (digest, {entry}, first_seen_at) VALUES {rows}
ON CONFLICT (digest) DO NOTHING
"""
# SQLite gives each new row the next rowid, so the rows just inserted have the highest ones.
_ADDED_TOKENS = """
SELECT json_group_array(hex(digest)) FROM sighted_tokens
WHERE rowid > (SELECT max(rowid) FROM sighted_tokens) - ?
"""
_READ_TOKENS = """
SELECT json_group_array(json_array(hex(digest), {entry}))
FROM sighted_tokens WHERE digest IN (VALUES {rows})
"""
_COUNT_REPEATS = """
INSERT INTO resubmitted_tokens (digest, caller, times, last_seen_at) VALUES {rows}
ON CONFLICT (digest, caller)
DO UPDATE SET times = times + excluded.times, last_seen_at = excluded.last_seen_at
"""
_COUNTED_REPEATS = """
WITH brought (digest, caller) AS (VALUES {rows})
SELECT json_group_array(json_array(hex(digest), caller, times))
FROM brought CROSS JOIN resubmitted_tokens USING (digest, caller)
"""

_APPEND = "INSERT INTO validation_history (id, {names}) VALUES {rows}"
_TIMES = [
    1 + at
    for at, field in enumerate(AuditRow._fields)
    if isinstance(validation_history.c[field].type, UtcDateTime)
]
_HOUR = AuditBatch._fields.index("hour")
_ADD_BATCH = """
INSERT INTO audit_batches
(writer, sequence, kind, hour, first_id, rows, root, head, salt, leaves) VALUES {rows}
"""
# The rows are not counted by SQLite, which would take longer to read and group those just inserted.
_COUNT_REASONS = """
INSERT INTO validation_counters (minute, reason, writer, times) VALUES {rows}
ON CONFLICT (minute, reason, writer) DO UPDATE SET times = times + excluded.times
"""
_COUNT_KINDS = """
INSERT INTO repeat_counters (minute, repeat, writer, times) VALUES {rows}
ON CONFLICT (minute, repeat, writer) DO UPDATE SET times = times + excluded.times
"""
_ADD_TO_TOTALS = """
INSERT INTO running_totals (counted, name, writer, times) VALUES {rows}
ON CONFLICT (counted, name, writer) DO UPDATE SET times = times + excluded.times
"""
# Without "WHERE true", SQLite would take ON for a join condition.
_ADD_ACTIVITY = """
INSERT INTO device_activity (day, device_serial, passes, pictures)
SELECT ?, key, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
ON CONFLICT (day, device_serial)
DO UPDATE SET passes = passes + excluded.passes, pictures = pictures + excluded.pictures
"""
_RISEN_DEVICES = """
SELECT json_group_object(device_serial, passes) FROM device_activity
WHERE day = ? AND device_serial IN (SELECT key FROM json_each(?)) AND passes > ?
"""


class SqliteStore:
    """Validation on SQLite. Owned by one writer thread, apart from `add_activity`."""

    def __init__(self) -> None:
        # Each writer has counter rows of its own, as on PostgreSQL.
        self._writer = secrets.randbelow(_WRITERS)
        self._chain = WriterChain()
        self._first_id = 0
        self._first_id_of: Transaction | None = None
        self._append = _APPEND.replace("{names}", ", ".join(AuditRow._fields))
        self._add_tokens = _ADD_TOKENS.replace("{entry}", _ENTRY)
        self._read_tokens = _READ_TOKENS.replace("{entry}", _ENTRY)

    def hold_statuses(self, transaction: Connection) -> None:
        """Do nothing: this transaction has the write lock since its start."""

    def find_devices(self, connection: Connection, nuc_hashes: Sequence[bytes]) -> FoundDevices:
        """Return the devices with these HMACs, by HMAC, and the generation of the key tables."""
        size = 1 << max(len(nuc_hashes) - 1, 0).bit_length()
        sought = (*nuc_hashes, *[None] * (size - len(nuc_hashes)))
        statement = _FIND_DEVICES.format(",".join("?" * size), first_id=_FIRST_ID)
        found = connection.exec_driver_sql(statement, sought).scalar_one()
        generation, self._first_id, devices = json.loads(found)
        self._first_id_of = connection.get_transaction()
        by_nuc_hash = {
            bytes.fromhex(nuc_hash): FoundDevice(
                serial, family, DeviceStatus(status), tables, epochs or ()
            )
            for nuc_hash, serial, family, status, tables, epochs in devices
        }
        return FoundDevices(by_nuc_hash, generation or 0)

    def add_tokens(
        self, transaction: Connection, entries: Mapping[bytes, LedgerEntry], now: datetime
    ) -> Set[bytes]:
        """Add tokens to the replay ledger; return the digests that were not there."""
        rows = [(digest, *entry, now) for digest, entry in sorted(entries.items())]
        added = sum(
            transaction.exec_driver_sql(*each).rowcount
            for each in _in_parts(self._add_tokens, rows, times=(-1,))
        )
        if added == len(rows):
            return entries.keys()
        digests = transaction.exec_driver_sql(_ADDED_TOKENS, (added,)).scalar_one()
        return {bytes.fromhex(digest) for digest in json.loads(digests)}

    def read_tokens(
        self,
        transaction: Connection,
        digests: Sequence[bytes],
        *,
        lock: bool = False,  # noqa: ARG002  this transaction holds the only write lock
    ) -> dict[bytes, LedgerEntry]:
        """Return these tokens of the replay ledger by digest."""
        entries = {}
        for each in _in_parts(self._read_tokens, [(digest,) for digest in digests]):
            found = transaction.exec_driver_sql(*each).scalar_one()
            for digest, *entry in json.loads(found):
                entries[bytes.fromhex(digest)] = LedgerEntry(*entry)
        return entries

    def count_repeats(
        self, transaction: Connection, times: Mapping[SeenToken, int], now: datetime
    ) -> dict[SeenToken, int]:
        """Add to the number of times that each caller repeated a token; return the new numbers."""
        rows = [(*seen, number, now) for seen, number in sorted(times.items())]
        for each in _in_parts(_COUNT_REPEATS, rows, times=(-1,)):
            transaction.exec_driver_sql(*each)
        counted = {}
        for each in _in_parts(_COUNTED_REPEATS, [tuple(seen) for seen in times]):
            found = transaction.exec_driver_sql(*each).scalar_one()
            for digest, caller, number in json.loads(found):
                counted[SeenToken(bytes.fromhex(digest), caller)] = number
        return counted

    def write(
        self, transaction: Connection, rows: Sequence[AuditRow], mark: CommitMark | None = None
    ) -> None:
        """Write audit rows and their batch, and add them to the counters of their minutes."""
        # The transaction has held the only write lock since `find_devices`.
        first_id = self._first_id
        if self._first_id_of is not transaction.get_transaction():
            first_id = transaction.exec_driver_sql(_SELECT_FIRST_ID).scalar_one()
        self._first_id_of = None  # a second batch begins after this one
        batch = self._chain.extend(mark, rows, first_id)
        numbered = [(first_id + at, *row) for at, row in enumerate(rows)]
        own = self._writer
        counts = count_batch(rows)
        verdicts = [(at, name, own, n) for kind, at, name, n in counts if kind == "verdict"]
        repeats = [(at, name, own, n) for kind, at, name, n in counts if kind == "repeat"]
        totals = [(kind, name, own, n) for kind, _, name, n in counts]
        for statement, sent, times in (
            (self._append, numbered, _TIMES),
            (_ADD_BATCH, [batch], (_HOUR,)),
            (_COUNT_REASONS, verdicts, (0,)),
            (_COUNT_KINDS, repeats, (0,)),
            (_ADD_TO_TOTALS, totals, ()),
        ):
            for each in _in_parts(statement, sent, times=times):
                transaction.exec_driver_sql(*each)

    def add_activity(
        self, transaction: Connection, day: date, counts: Mapping[str, DeviceCount], *, least: int
    ) -> dict[str, int]:
        """Add to the counts of devices on a day; return those with more than `least` passes."""
        active = json.dumps(counts, ensure_ascii=False)
        transaction.exec_driver_sql(_ADD_ACTIVITY, (day.isoformat(), active))
        asked = (day.isoformat(), active, least)
        risen: dict[str, int] = json.loads(
            transaction.exec_driver_sql(_RISEN_DEVICES, asked).scalar_one()
        )
        return risen

    def find_old_tokens(self, connection: Connection, before: datetime, *, limit: int) -> list[Any]:
        """Return the rowids of the tokens first seen before a time.

        Only the `limit` rows with the lowest rowids, which were written first, are checked.
        """
        row_id: ColumnElement[int] = literal_column("rowid")
        oldest = (
            select(row_id.label("row_id"), _first_seen_at)
            .select_from(sighted_tokens)
            .order_by(row_id)
            .limit(limit)
            .subquery()
        )
        old = select(oldest.c.row_id).where(oldest.c.first_seen_at < before)
        return list(connection.execute(old).scalars())

    def delete_tokens(
        self, transaction: Connection, row_ids: Sequence[Any], before: datetime
    ) -> list[bytes]:
        """Delete the tokens that `find_old_tokens` found; return their digests."""
        old = and_(literal_column("rowid").in_(row_ids), _first_seen_at < before)
        gone = delete(sighted_tokens).where(old).returning(sighted_tokens.c.digest)
        return list(transaction.execute(gone).scalars())


def _in_parts(
    statement: str, rows: Sequence[Sequence[Any]], *, times: Sequence[int] = ()
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield statements for all rows, each with the parameters of up to 256 rows.

    `times` are the positions in a row that hold a time or None, which become SQLite's text.
    """
    if not rows:
        return
    width = len(rows[0])
    row = f"({', '.join('?' * width)})"
    texts: dict[datetime | None, str | None] = {
        None: None
    }  # most rows of a batch have the same time
    start = 0
    while start < len(rows):
        size = next(size for size in _SIZES if size <= len(rows) - start)
        values: list[Any] = []
        for each in rows[start : start + size]:
            values += each
        for position in times:
            for at in range(position % width, len(values), width):
                value = values[at]
                if value not in texts:
                    texts[value] = as_sqlite_text(value)
                values[at] = texts[value]
        yield statement.format(rows=", ".join([row] * size)), tuple(values)
        start += size
