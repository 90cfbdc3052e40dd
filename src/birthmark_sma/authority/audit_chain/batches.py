"""A batch of a chain: the leaves of its rows, their Merkle root, and the head of the chain. PURE.

`writer_chain`, `acts.trail` and the migration make batches, and `sma audit verify` recomputes them.
The encodings are normative (docs/operate/tamper-evidence.md): a change makes every stored row
unverifiable. A leaf must cover every column but the id, whose place in the batch is in the root.
The head covers all that a batch has but the salt and the cut leaves, so both can be dropped.

The leaf of an audit row is SHA-256 of 0x00 (RFC 9162), then big-endian numbers: a bit for each
column that is NULL, the lengths in bytes of the ciphertext and the digest (16 bits each), table id,
key index, position in the batch and waiting time (64 bits each, 0 for NULL); then the commitment to
time and address (32 bytes), ciphertext, digest, and the texts in UTF-8, separated by zero bytes.

The head is SHA-256 of 0x02, the head before (32 zero bytes for the first batch), the sequence, the
hour in seconds since 1970, the first id and the number of rows (64 bits each, big-endian), the
root, and the texts kind and writer in UTF-8, separated by a zero byte.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

_NODE_PREFIX = b"\x01"
_HEAD_PREFIX = b"\x02"
_EMPTY_ROOT = sha256().digest()
_pack_head = struct.Struct(">qqqq").pack


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
    numbers = _pack_head(batch.sequence, int(batch.hour.timestamp()), batch.first_id, batch.rows)
    names = f"{batch.kind}\0{batch.writer}".encode()
    return sha256(_HEAD_PREFIX + head_before + numbers + batch.root + names).digest()


def floor_to_hour(time: datetime) -> datetime:
    """Return the beginning of the hour of a time, in UTC."""
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


# --- leaves

LEAF_PREFIX = b"\x00"
SALT_BYTES = 16
CUT_BYTES = 16
"""So many bytes of each leaf are stored beside the root, to find the row that differs."""

ABSENT_LEAF = sha256(LEAF_PREFIX).digest()
"""Stands for an id that no row had, in a batch of rows from before there were chains."""

ROW_FIELDS = (
    "encrypted_nuc_hash",
    "table_id",
    "key_index",
    "validation_result",
    "reason",
    "device_serial",
    "validated_at",
    "request_ip",
    "caller",
    "repeat",
    "request_id",
    "batch_position",
    "token_digest",
    "waited_us",
)
"""The columns of an audit row, in the order in which `hash_rows` takes them."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_pack = struct.Struct(">cHHHqqqq").pack
_pack_time = struct.Struct(">q?").pack
_TEXTS = (3, 4, 5, 8, 9, 10)
"""The places in `ROW_FIELDS` of the texts that a zero byte separates."""


def commit_to(salt: bytes, validated_at: datetime, request_ip: str | None) -> bytes:
    """Return the commitment to time and address: 32 bytes that tell neither without the salt.

    It is SHA-256 of the batch's salt, the microseconds since 1970 (64 bits), a byte that is 1 if
    there is an address, and the address in UTF-8.
    """
    since = (validated_at - _EPOCH) // _MICROSECOND
    address = (request_ip or "").encode()
    return sha256(salt + _pack_time(since, request_ip is not None) + address).digest()


def hash_rows(
    rows: Iterable[Sequence[Any]],
    salt: bytes,
    kept: Mapping[int, bytes] | None = None,
) -> list[bytes]:
    """Return the leaves of audit rows, whose values are in the order of `ROW_FIELDS`.

    This is a hot path: no function of ours is called for a row. `kept` has, by index, the
    commitments of rows whose time or address were dropped. Raises struct.error, TypeError,
    AttributeError or UnicodeError for values that no row of a writer has.
    """
    # Most rows of a batch share time and address, so few commitments remain to be computed.
    commitments: dict[tuple[datetime, str | None], bytes] = {}
    leaves = []
    for at, row in enumerate(rows):
        (
            sealed, table, index, result, reason, serial, time, ip,
            caller, repeat, request, position, digest, waited,
        ) = row  # fmt: skip
        nulls = 0  # CPython 3.11 tests each value in one instruction
        if serial is None:
            nulls, serial = 1, ""
        if caller is None:
            nulls, caller = nulls + 2, ""
        if repeat is None:
            nulls, repeat = nulls + 4, ""
        if request is None:
            nulls, request = nulls + 8, ""
        if position is None:
            nulls, position = nulls + 16, 0
        if digest is None:
            nulls, digest = nulls + 32, b""
        if waited is None:
            nulls, waited = nulls + 64, 0
        if kept and at in kept:
            commitment = kept[at]
        else:
            try:
                commitment = commitments[time, ip]
            except KeyError:
                commitment = commitments[time, ip] = commit_to(salt, time, ip)
        head = _pack(LEAF_PREFIX, nulls, len(sealed), len(digest), table, index, position, waited)
        texts = f"{result}\0{reason}\0{serial}\0{caller}\0{repeat}\0{request}".encode()
        leaves.append(sha256(b"".join((head, commitment, sealed, digest, texts))).digest())
    return leaves


def hash_stored_row(row: Sequence[Any], salt: bytes, kept: bytes | None) -> bytes | None:
    """Return the leaf of a row that was read, or None if no program can have written the row.

    Unlike a writer's, the row can have anything in it. `kept` is the commitment of a row whose time
    and address were dropped.
    """
    try:
        if any("\0" in (row[at] or "") for at in _TEXTS):  # it would shift the texts unnoticed
            return None
        [leaf] = hash_rows([row], salt, {} if kept is None else {0: kept})
    except (struct.error, TypeError, AttributeError, ValueError):
        return None
    return leaf


def hash_act(values: Sequence[Any]) -> bytes:
    """Return the leaf of an act or of one of its subjects: of 0x00 and a JSON array of its columns.

    The array is ASCII, with `\\u` escapes and without blanks. A time is a text in RFC 3339 with six
    digits of the second and `Z`.
    """
    encoded = json.dumps(values, separators=(",", ":"), default=_as_text)
    return sha256(LEAF_PREFIX + encoded.encode()).digest()


def cut(leaves: Iterable[bytes]) -> bytes:
    """Return the first 16 bytes of each leaf, one after the other."""
    return b"".join([leaf[:CUT_BYTES] for leaf in leaves])


def _as_text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
