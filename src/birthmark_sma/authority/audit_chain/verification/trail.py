"""Verify the audit log, the acts and their chains against each other and the checkpoints. PURE.

`sma audit verify` calls it, with a reader of the database or of an export. It names each thing that
was deleted, changed, inserted, doubled or moved. Memory is bounded by the rows of one batch and the
number of chains. It must never trust a value that the chain does not cover.
"""

import struct
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter

from birthmark_sma.authority.audit_chain.batches import (
    ABSENT_LEAF,
    ACTS,
    CUT_BYTES,
    EARLIER,
    ROW_FIELDS,
    START,
    AuditBatch,
    End,
    compute_head,
    cut,
    floor_to_hour,
    hash_stored_row,
    merkle_root,
)
from birthmark_sma.authority.audit_chain.checkpoint import KeptNote, Signed
from birthmark_sma.authority.audit_chain.verification.checkpoint_notes import (
    add_up,
    compare_notes,
    find_key,
)
from birthmark_sma.authority.audit_chain.verification.findings import (
    AuditReader,
    Finding,
    StoredAct,
    StoredRow,
    Verified,
    name_batch,
    name_numbers,
)

MOST_ROWS = 1_000_000
"""No batch has so many rows. A number that somebody changed must not fill the memory."""
_TIME, _ADDRESS = ROW_FIELDS.index("validated_at"), ROW_FIELDS.index("request_ip")
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_NO_LEAF = b"no program has written this row"


def verify(
    reader: AuditReader, verifier: str | None, kept: Collection[KeptNote], done: Verified
) -> Iterator[Finding]:
    """Yield what is wrong. `done` is counted up meanwhile.

    `verifier` is the public key of the checkpoints that was kept elsewhere; with None, the one that
    the reader has is trusted. `kept` are checkpoints by number that were kept elsewhere.
    """
    for what in reader.malformed():
        yield Finding("changed", what, "no program writes such values")
    key = yield from find_key(reader, verifier)
    signed = yield from add_up(reader.notes(), key, done)
    kept_sum = yield from compare_notes(kept, reader.notes(), key)
    yield from _verify_chains(reader.chains(), signed, kept_sum, done)
    for day in reader.days():
        yield from _verify_rows(reader.batches_of(day), reader.rows_of(day), signed, done)
    gone = signed.gone.get(ACTS, START).sequence
    yield from _verify_acts(reader.batches_of_acts(), reader.acts(), gone, done)


def _verify_chains(
    batches: Iterable[AuditBatch], signed: Signed, kept: Signed, done: Verified
) -> Iterator[Finding]:
    seen = set()
    for writer, chain in groupby(batches, attrgetter("writer")):
        seen.add(writer)
        done.chains += 1
        last = yield from _verify_chain(writer, chain, signed, kept, done)
        for ends in (signed.chains, kept.chains):
            if writer in ends and ends[writer].sequence > last:
                missing = range(last + 1, ends[writer].sequence + 1)
                yield Finding("deleted", name_numbers("batch", missing, writer))
                break
    for writer, end in {**kept.chains, **signed.chains}.items():
        if writer not in seen:
            yield Finding("deleted", name_numbers("batch", range(1, end.sequence + 1), writer))


def _verify_chain(
    writer: str, chain: Iterable[AuditBatch], signed: Signed, kept: Signed, done: Verified
) -> Generator[Finding, None, int]:
    """Yield what is wrong with a chain, and return its last sequence."""
    gone = signed.gone.get(writer, START)
    signatures = [each[writer] for each in (signed.chains, kept.chains) if writer in each]
    if gone is not START:
        signatures.append(gone)
    end: End | None = None
    signed_end = signed.chains.get(writer, START)
    for batch in chain:
        done.batches += 1
        done.unsigned_batches += batch.sequence > signed_end.sequence
        what = f"batch {batch.sequence} of chain {writer}"
        if end is None and batch.sequence <= gone.sequence:
            end = End(batch.sequence - 1, b"")  # retention has deleted those before, or will do so
        before = end or gone
        if batch.sequence <= before.sequence:
            yield Finding("doubled", what)
        elif batch.sequence > before.sequence + 1:
            missing = range(before.sequence + 1, batch.sequence)
            yield Finding("deleted", name_numbers("batch", missing, writer))
        elif before.head and _head_of(batch, before.head) != batch.head:
            yield Finding("changed", what)
        elif not before.head and not _is_pruned(batch, signed.pruned):
            # Its head cannot be recomputed, so its hour could be any, and it could cover new rows.
            yield Finding("changed", what, "it was one that retention deletes")
        elif any(
            each.sequence == batch.sequence and each.head != batch.head for each in signatures
        ):
            yield Finding("changed", what, "a checkpoint has signed another head")
        end = batch.end
    return (end or gone).sequence


def _is_pruned(batch: AuditBatch, pruned: datetime | None) -> bool:
    """Return whether retention deletes the rows of this batch."""
    return pruned is not None and batch.hour < pruned


def _head_of(batch: AuditBatch, before: bytes) -> bytes | None:
    try:
        return compute_head(batch, before)
    except (struct.error, TypeError, ValueError, AttributeError):
        return None  # no program has written such a batch


def _verify_rows(
    batches: Iterable[AuditBatch],
    rows: Iterable[StoredRow],
    signed: Signed,
    done: Verified,
) -> Iterator[Finding]:
    """Yield what is wrong with the rows of a day. Both are in the order of ids."""
    following = iter(rows)
    row = next(following, None)
    last_id = None
    for batch in batches:
        if not 0 < batch.rows <= MOST_ROWS:
            yield Finding("changed", name_batch(batch), "its number of rows")
            continue
        leaves: list[bytes | None] = [None] * batch.rows
        while row is not None and row.id < batch.first_id + batch.rows:
            done.rows += 1
            if row.id == last_id:
                yield Finding("doubled", f"row {row.id}")
            elif row.id < batch.first_id:
                yield Finding("inserted", f"row {row.id}", "it is in no batch")
            else:
                leaf = _leaf_of(row, batch, signed.coarse)
                leaves[row.id - batch.first_id] = leaf or _NO_LEAF
            last_id = row.id
            row = next(following, None)
        yield from _compare(batch, leaves, done, may_lack=_is_pruned(batch, signed.pruned))
    while row is not None:
        done.rows += 1
        fault = ("doubled", "") if row.id == last_id else ("inserted", "it is in no batch")
        yield Finding(fault[0], f"row {row.id}", fault[1])
        last_id = row.id
        row = next(following, None)


def _leaf_of(row: StoredRow, batch: AuditBatch, coarse: datetime | None) -> bytes | None:
    """Return the leaf of a row, or None if no program can have written the row.

    A commitment does not cover what takes the place of time and address: nothing but the beginning
    of the hour and no address, in a batch without a salt, from before the signed time `coarse`.
    """
    if row.kept is not None:
        time: datetime = row.values[_TIME]
        ends = batch.hour + (_DAY if batch.writer == EARLIER else _HOUR)
        is_coarse = time == floor_to_hour(time) and row.values[_ADDRESS] is None
        is_permitted = coarse is not None and batch.hour < coarse and batch.salt is None
        if not (is_coarse and batch.hour <= time < ends and is_permitted):
            return None
    return hash_stored_row(row.values, batch.salt or b"", row.kept)


def _compare(
    batch: AuditBatch, found: Sequence[bytes | None], done: Verified, *, may_lack: bool
) -> Iterator[Finding]:
    """Compare the leaves of rows that were found, or None, with a batch."""
    lacks = found.count(None)
    leaves = [leaf or ABSENT_LEAF for leaf in found]
    is_cut_right = batch.leaves in {None, cut(leaves)}
    if merkle_root(leaves) == batch.root:
        if not is_cut_right:
            yield Finding("changed", name_batch(batch), "its leaves")
        return
    if may_lack and lacks:
        done.pruned_rows += lacks
    stored = batch.leaves or b""
    expected = [stored[at : at + CUT_BYTES] for at in range(0, len(stored), CUT_BYTES)]
    if len(expected) != len(leaves):
        if not (may_lack and lacks):
            yield Finding("changed", name_batch(batch), "or one of its rows")
        return
    wrong = [at for at, leaf in enumerate(leaves) if leaf[:CUT_BYTES] != expected[at]]
    if may_lack:
        wrong = [at for at in wrong if found[at] is not None]
        if not wrong:
            return
    if not wrong or (len(wrong) == len(leaves) > 1 and not lacks):
        yield Finding("changed", name_batch(batch), "or all of its rows")
    else:
        yield from _name_rows(batch, found, expected, wrong)


def _name_rows(
    batch: AuditBatch,
    found: Sequence[bytes | None],
    expected: Sequence[bytes],
    wrong: Sequence[int],
) -> Iterator[Finding]:
    """Yield a finding for each of these places of a batch."""
    places = {leaf: at for at, leaf in enumerate(expected)}
    for at in wrong:
        what, leaf = f"row {batch.first_id + at}", found[at]
        if leaf is None:
            yield Finding("deleted", what)
        elif expected[at] == ABSENT_LEAF[:CUT_BYTES]:
            yield Finding("inserted", what)
        elif leaf[:CUT_BYTES] in places:
            was = batch.first_id + places[leaf[:CUT_BYTES]]
            yield Finding("moved", what, f"it was row {was}")
        else:
            yield Finding("changed", what)


def _verify_acts(
    batches: Iterable[AuditBatch], acts: Iterable[StoredAct], gone: int, done: Verified
) -> Iterator[Finding]:
    """Yield what is wrong with the acts. Both are in the order of ids."""
    following = iter(acts)
    act = next(following, None)
    last_id = None
    for batch in batches:
        while act is not None and act.id < batch.first_id:
            yield from _find_strange(act, last_id, done)
            last_id, act = act.id, next(following, None)
        if act is not None and act.id == batch.first_id:
            done.acts += bool(act.leaves)
            if act.leaves:
                yield from _compare_act(batch, act)
            elif batch.sequence > gone:
                yield Finding("deleted", f"act {act.id}", "its subjects are there")
            last_id, act = act.id, next(following, None)
        elif batch.sequence > gone:
            yield Finding("deleted", f"act {batch.first_id}")
    while act is not None:
        yield from _find_strange(act, last_id, done)
        last_id, act = act.id, next(following, None)


def _find_strange(act: StoredAct, last_id: int | None, done: Verified) -> Iterator[Finding]:
    """Yield the findings of an act that is in no batch, or there twice."""
    done.acts += bool(act.leaves)
    if act.id == last_id:
        yield Finding("doubled", f"act {act.id}")
    elif act.leaves:
        yield Finding("inserted", f"act {act.id}", "it is in no batch")
    else:
        for name in act.subjects:
            yield Finding("inserted", f"subject {name!r} of act {act.id}", "there is no such act")


def _compare_act(batch: AuditBatch, act: StoredAct) -> Iterator[Finding]:
    if merkle_root(act.leaves) == batch.root:
        if batch.leaves not in {None, cut(act.leaves)}:
            yield Finding("changed", name_batch(batch), "its leaves")
        return
    stored = batch.leaves or b""
    expected = [stored[at : at + CUT_BYTES] for at in range(0, len(stored), CUT_BYTES)]
    what = f"act {act.id}"
    if expected[:1] != [act.leaves[0][:CUT_BYTES]]:
        yield Finding("changed", what)
        return
    strange = [
        name
        for name, leaf in zip(act.subjects, act.leaves[1:], strict=True)
        if leaf[:CUT_BYTES] not in expected
    ]
    for name in strange:
        yield Finding("changed", f"subject {name!r} of {what}", "or it was inserted")
    if not strange:
        fault = "deleted" if len(expected) > len(act.leaves) else "changed"
        yield Finding(fault, f"a subject of {what}")
