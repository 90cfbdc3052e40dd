"""A batch of a chain: the rows of one commit, their Merkle root, and the head of the chain. PURE.

`writer_chain`, `acts.trail` and the migration make batches, and `sma audit verify` recomputes them.
The head covers all that a batch has but the salt and the cut leaves, so both can be dropped.

The head is SHA-256 of 0x02, the head before (32 zero bytes for the first batch), the sequence, the
hour in seconds since 1970, the first id and the number of rows (64 bits each, big-endian), the
root, and the texts kind and writer in UTF-8, separated by a zero byte.
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from birthmark_sma.authority.audit_chain.leaves import cut

_NODE_PREFIX = b"\x01"
_HEAD_PREFIX = b"\x02"
_EMPTY_ROOT = sha256().digest()
_pack = struct.Struct(">qqqq").pack


ACTS = "acts"
"""The name of the one chain of acts."""
EARLIER = "earlier"
"""The name of the chain of the rows from before there were chains. A batch of it is of one day."""


class Kind(StrEnum):
    """The kinds of rows in a batch."""

    VALIDATIONS = "validations"
    ACTS = "acts"


class End(NamedTuple):
    """The end of a chain: the sequence of its last batch, and the head there."""

    sequence: int
    head: bytes


START = End(0, bytes(32))
"""The end of a chain that has no batch yet. Sequences begin at 1."""


class AuditBatch(NamedTuple):
    """A row of `audit_batches`, whose columns have these names.

    `hour` is the beginning of the hour of its rows, all of which have one time; for the rows from
    before chains existed it is their day. The ids of the rows are consecutive: `rows` of them, from
    `first_id` on. An act is one row, whatever number of subjects it has. `leaves` are cut to 16
    bytes each. `salt` and `leaves` are None once they were dropped; acts have no salt.
    """

    writer: str
    sequence: int
    kind: str
    hour: datetime
    first_id: int
    rows: int
    root: bytes
    head: bytes
    salt: bytes | None
    leaves: bytes | None

    @property
    def end(self) -> End:
        """Return the end of the chain after this batch."""
        return End(self.sequence, self.head)


def seal(
    writer: str,
    before: End,
    kind: Kind,
    leaves: Sequence[bytes],
    *,
    hour: datetime,
    first_id: int,
    rows: int,
    salt: bytes | None,
) -> AuditBatch:
    """Return the batch of these leaves that follows the end `before` of the writer's chain."""
    batch = AuditBatch(
        writer,
        before.sequence + 1,
        kind.value,
        hour,
        first_id,
        rows,
        merkle_root(leaves),
        b"",
        salt,
        cut(leaves),
    )
    return batch._replace(head=compute_head(batch, before.head))


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle tree hash above leaf hashes (RFC 9162, section 2.1.1, with SHA-256).

    Pairs of neighbours are hashed level by level, and the last one of an odd level moves up. This
    is the tree that the RFC defines by splitting at the largest power of two.
    """
    level: Sequence[bytes] = leaves
    while len(level) > 1:
        neighbours = iter(level)
        above = [
            sha256(_NODE_PREFIX + left + right).digest()
            for left, right in zip(neighbours, neighbours, strict=False)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0] if level else _EMPTY_ROOT


def compute_head(batch: AuditBatch, head_before: bytes) -> bytes:
    """Return the head of a chain after a batch, whose own head is ignored."""
    numbers = _pack(batch.sequence, int(batch.hour.timestamp()), batch.first_id, batch.rows)
    names = f"{batch.kind}\0{batch.writer}".encode()
    return sha256(_HEAD_PREFIX + head_before + numbers + batch.root + names).digest()


def floor_to_hour(time: datetime) -> datetime:
    """Return the beginning of the hour of a time, in UTC."""
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
