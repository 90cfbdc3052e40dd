"""The statements of validation on PostgreSQL. `store.ValidationStore` says what each must do.

This is a hot path: each call of the driver costs as much as judging several tokens. So each method
is one statement, sent in one blocking call of libpq (`storage.postgresql_driver`), and rows are
sent as one array for each column. Statements must be built from the fields of the records.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, select

from birthmark_sma.authority.audit_chain.writer_chain import WriterChain
from birthmark_sma.authority.devices.activity import DeviceCount
from birthmark_sma.authority.validation.records import (
    AuditRow,
    FoundDevice,
    FoundDevices,
    LedgerEntry,
    count_batch,
)
from birthmark_sma.protocol.camera_token import DIGEST_BYTES
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.locks import AdvisoryLock
from birthmark_sma.storage.outages.commit_marks import CommitMark
from birthmark_sma.storage.portable_sql import is_any_of
from birthmark_sma.storage.postgresql.arrays import (
    ColumnArrays,
    array_of_bytes,
    array_of_integers,
    array_of_text,
    array_of_times,
    encode_integer,
    encode_long,
    encode_time,
    parse_integer_array,
)
from birthmark_sma.storage.postgresql_driver import NamedStatement
from birthmark_sma.storage.schema.validations import (
    resubmitted_tokens,
    sighted_tokens,
    validation_history,
)

IDS_RESERVED = 100_000
"""A writer reserves so many ids of audit rows at a time. No batch has more rows."""
_WRITERS = 1 << 15  # the non-negative values of the column's type, smallint
_first_seen_at = sighted_tokens.c.first_seen_at


# A statement of its own, before the one that reads the statuses: a statement that waited for the
# lock would still see the rows of before.
_HOLD_STATUSES = NamedStatement(
    "SELECT pg_advisory_xact_lock_shared({lock})", lock=str(AdvisoryLock.VERDICTS.value)
)
# The generation of the key tables comes with the devices, because another statement would cost as
# much as judging several tokens. The join returns a row also if no device is found.
_FIND_DEVICES = NamedStatement(
    """
SELECT (SELECT table_generation FROM authority), nuc_hash, {fields} FROM (SELECT) AS always
LEFT JOIN registered_devices ON nuc_hash = ANY(:nuc_hashes::bytea[])
""",
    fields=", ".join(FoundDevice._fields),
)
# Keys are bytes, as in PostgreSQL's binary format: no status is decoded.
_STATUSES = {status.value.encode(): status for status in DeviceStatus}

# The result is one value, the concatenated digests of the new rows: fewer values to read.
_LEDGER = ColumnArrays(sighted_tokens, ("digest", *LedgerEntry._fields, "first_seen_at"))
_ADD_TOKENS = NamedStatement(
    """
WITH added AS (
    INSERT INTO sighted_tokens ({names}) SELECT * FROM unnest({arrays})
    ON CONFLICT (digest) DO NOTHING RETURNING digest
)
SELECT string_agg(digest, '') FROM added
""",
    names=_LEDGER.names,
    arrays=_LEDGER.arrays,
)
# A statement of its own: `_ADD_TOKENS` may have waited for another transaction's commit, and only
# a later statement sees the rows of that commit.
_READ_TOKENS = """
SELECT digest, first_caller, CAST(passed_under AS text) FROM sighted_tokens
WHERE digest = ANY(:digests::bytea[]) ORDER BY digest"""
_READ_AND_LOCK_TOKENS = NamedStatement(_READ_TOKENS + " FOR UPDATE")
_ONLY_READ_TOKENS = NamedStatement(_READ_TOKENS)

_REPEATS = ColumnArrays(resubmitted_tokens, ("digest", "caller", "times", "last_seen_at"))
_COUNT_REPEATS = NamedStatement(
    """
INSERT INTO resubmitted_tokens AS counted ({names})
SELECT * FROM unnest({arrays})
ON CONFLICT (digest, caller)
DO UPDATE SET times = counted.times + excluded.times, last_seen_at = excluded.last_seen_at
RETURNING digest, caller, CAST(times AS text)
""",
    names=_REPEATS.names,
    arrays=_REPEATS.arrays,
)

# One statement of several CTEs: PostgreSQL runs each data-modifying CTE once, read or not. The rows
# are counted here: to keep them for a GROUP BY would cost PostgreSQL more than to append them.
# Counter rows need no lock order, because each writer has its own.
_ROWS = ColumnArrays(validation_history, AuditRow._fields)
_WRITE = NamedStatement(
    """
WITH appended AS (
    INSERT INTO validation_history (id, {names})
    SELECT :first_id::int8 + place - 1, {names}
    FROM unnest({arrays}) WITH ORDINALITY AS sent ({names}, place)
), batch AS (
    INSERT INTO audit_batches
        (writer, sequence, kind, hour, first_id, rows, root, head, salt, leaves)
    VALUES (:chain::text, :sequence::int8, :kind::text, :hour::timestamptz, :first_id::int8,
        :row_count::int4, :root::bytea, :head::bytea, :salt::bytea, :leaves::bytea)
), counts AS (
    SELECT *, CAST(:writer::text AS smallint) AS own
    FROM unnest(:counted::text[], :minute::timestamptz[], :name::text[], :times::int4[])
        AS sent (counted, minute, name, times)
), verdicts AS (
    INSERT INTO validation_counters (minute, reason, writer, times)
    SELECT minute, name, own, times FROM counts WHERE counted = 'verdict'
    ON CONFLICT (minute, reason, writer)
    DO UPDATE SET times = validation_counters.times + excluded.times
), repeats AS (
    INSERT INTO repeat_counters (minute, repeat, writer, times)
    SELECT minute, name, own, times FROM counts WHERE counted = 'repeat'
    ON CONFLICT (minute, repeat, writer)
    DO UPDATE SET times = repeat_counters.times + excluded.times
)
INSERT INTO running_totals (counted, name, writer, times)
SELECT counted, name, own, sum(times) FROM counts GROUP BY counted, name, own
ON CONFLICT (counted, name, writer)
DO UPDATE SET times = running_totals.times + excluded.times
""",
    names=_ROWS.names,
    arrays=_ROWS.arrays,
)
# The sequence goes up by IDS_RESERVED at a time (migration 0016), so one value reserves them all.
_RESERVE_IDS = NamedStatement("SELECT CAST(nextval('validation_history_id_seq') AS text)")

# Lock order: rows are updated in the order of their serials, which prevents a deadlock between two
# processes. It returns the devices that now have more than :least passes on this day.
_ADD_ACTIVITY = NamedStatement("""
WITH active AS (
    INSERT INTO device_activity (day, device_serial, passes, pictures)
    SELECT CAST(:day::text AS date), * FROM
        unnest(:serials::text[], :passes::int4[], :pictures::int4[]) AS sent (device_serial)
    ORDER BY device_serial
    ON CONFLICT (day, device_serial)
    DO UPDATE SET passes = device_activity.passes + excluded.passes,
        pictures = device_activity.pictures + excluded.pictures
    RETURNING device_serial, passes)
SELECT json_object_agg(device_serial, passes) FROM active
WHERE passes > CAST(:least::text AS bigint)
""")


@contextmanager
def prefer_bitmap_scans(connection: Connection) -> Iterator[None]:
    """Answer the queries in this block by a bitmap of an index.

    The planner expects that the BRIN index of a column without order leads to the whole table, and
    would read that instead (docs/adr/0018).
    """
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    connection.exec_driver_sql("SET LOCAL enable_indexscan = off")
    yield  # after an error the transaction is over, and these settings with it
    connection.exec_driver_sql("SET LOCAL enable_seqscan = on")
    connection.exec_driver_sql("SET LOCAL enable_indexscan = on")


class PostgresqlStore:
    """Validation on PostgreSQL. Owned by one writer thread, apart from `add_activity`."""

    def __init__(self) -> None:
        # Each writer has counter rows of its own, so that processes do not wait for each other.
        self._writer = secrets.randbelow(_WRITERS)
        self._chain = WriterChain()
        self._ids = range(0)  # reserved, and not yet used
        self._ids_of = ""  # the name of the writer that reserved them

    def hold_statuses(self, transaction: Connection) -> None:
        """Make every change of a device's status wait for the end of this transaction."""
        _HOLD_STATUSES.run_at_begin(transaction)

    def find_devices(self, connection: Connection, nuc_hashes: Sequence[bytes]) -> FoundDevices:
        """Return the devices with these HMACs, by HMAC, and the generation of the key tables."""
        found = _FIND_DEVICES.run(connection, nuc_hashes=array_of_bytes(nuc_hashes))
        devices = {}
        for row in range(found.ntuples):
            # In PostgreSQL's binary format. Only the epochs may be NULL, which means none, and all
            # columns if no device was found.
            nuc_hash, serial, family, status, tables, epochs = (
                found.get_value(row, column) or b"" for column in range(1, 7)
            )
            if nuc_hash:
                devices[nuc_hash] = FoundDevice(
                    serial.decode(),
                    family.decode(),
                    _STATUSES[status],
                    parse_integer_array(tables),
                    parse_integer_array(epochs),
                )
        return FoundDevices(devices, int.from_bytes(found.get_value(0, 0) or b"", "big"))

    def add_tokens(
        self, transaction: Connection, entries: Mapping[bytes, LedgerEntry], now: datetime
    ) -> Set[bytes]:
        """Add tokens to the replay ledger; return the digests that were not there."""
        rows = [(digest, *entry, now) for digest, entry in sorted(entries.items())]
        added = _ADD_TOKENS.run(transaction, **_LEDGER.encode(rows)).get_value(0, 0) or b""
        return {added[at : at + DIGEST_BYTES] for at in range(0, len(added), DIGEST_BYTES)}

    def read_tokens(
        self, transaction: Connection, digests: Sequence[bytes], *, lock: bool = False
    ) -> dict[bytes, LedgerEntry]:
        """Return these tokens of the replay ledger by digest."""
        statement = _READ_AND_LOCK_TOKENS if lock else _ONLY_READ_TOKENS
        found = statement.run(transaction, digests=array_of_bytes(digests))
        rows = (
            [found.get_value(row, at) or b"" for at in range(3)] for row in range(found.ntuples)
        )
        return {digest: LedgerEntry(first.decode(), int(under)) for digest, first, under in rows}

    def count_repeats(
        self, transaction: Connection, times: Mapping[SeenToken, int], now: datetime
    ) -> dict[SeenToken, int]:
        """Add to the number of times that each caller repeated a token; return the new numbers."""
        rows = [(*seen, number, now) for seen, number in sorted(times.items())]
        found = _COUNT_REPEATS.run(transaction, **_REPEATS.encode(rows))
        counted = (
            [found.get_value(row, column) or b"" for column in range(3)]
            for row in range(found.ntuples)
        )
        return {SeenToken(digest, who.decode()): int(number) for digest, who, number in counted}

    def write(
        self, transaction: Connection, rows: Sequence[AuditRow], mark: CommitMark | None = None
    ) -> None:
        """Write audit rows and their batch, and add them to the counters of their minutes."""
        counted, minute, name, times = zip(*count_batch(rows), strict=True)
        first_id = self._take_ids(transaction, len(rows), mark.writer if mark else "")
        batch = self._chain.extend(mark, rows, first_id)
        _WRITE.run_at_commit(
            transaction,
            first_id=encode_long(first_id),
            chain=batch.writer.encode(),
            sequence=encode_long(batch.sequence),
            kind=batch.kind.encode(),
            hour=encode_time(batch.hour),
            row_count=encode_integer(batch.rows),
            root=batch.root,
            head=batch.head,
            salt=batch.salt or b"",
            leaves=batch.leaves or b"",
            writer=b"%d" % self._writer,
            counted=array_of_text(counted),
            minute=array_of_times(minute),
            name=array_of_text(name),
            times=array_of_integers(times),
            **_ROWS.encode(rows),
        )

    def _take_ids(self, transaction: Connection, count: int, writer: str) -> int:
        """Return the first of `count` consecutive ids that no other writer gets.

        The ids of a transaction that failed are not used again. A writer with a new name takes new
        ones: after a fail-over, the database may have forgotten that these were reserved.
        """
        if len(self._ids) < count or self._ids_of != writer:
            first = int(_RESERVE_IDS.run(transaction).get_value(0, 0) or b"")
            self._ids, self._ids_of = range(first, first + IDS_RESERVED), writer
        first_id = self._ids.start
        self._ids = self._ids[count:]
        return first_id

    def add_activity(
        self, transaction: Connection, day: date, counts: Mapping[str, DeviceCount], *, least: int
    ) -> dict[str, int]:
        """Add to the counts of devices on a day; return those with more than `least` passes."""
        risen = _ADD_ACTIVITY.run(
            transaction,
            day=day.isoformat().encode(),
            serials=array_of_text(list(counts)),
            passes=array_of_integers([each.passes for each in counts.values()]),
            pictures=array_of_integers([each.pictures for each in counts.values()]),
            least=b"%d" % least,
        )
        found: dict[str, int] = json.loads(risen.get_value(0, 0) or b"{}")
        return found

    def find_old_tokens(self, connection: Connection, before: datetime, *, limit: int) -> list[Any]:
        """Return the digests of up to `limit` tokens first seen before a time."""
        # Without a sequential scan the planner uses the BRIN index on the time, whatever number of
        # rows it expects. If no row is old, only few pages are then read.
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        old = select(sighted_tokens.c.digest).where(_first_seen_at < before)
        return list(connection.execute(old.limit(limit)).scalars())

    def delete_tokens(
        self, transaction: Connection, row_ids: Sequence[Any], before: datetime
    ) -> list[bytes]:
        """Delete the tokens that `find_old_tokens` found; return their digests."""
        there = is_any_of(transaction, sighted_tokens.c.digest, list(row_ids))
        old = and_(there, _first_seen_at < before)
        gone = delete(sighted_tokens).where(old).returning(sighted_tokens.c.digest)
        return list(transaction.execute(gone).scalars())
