"""The leaf of an audit row covers each column, and two rows never have one encoding."""

import struct
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from birthmark_sma.authority.audit_chain.batches import (
    ROW_FIELDS,
    commit_to,
    cut,
    hash_act,
    hash_rows,
    hash_stored_row,
)
from birthmark_sma.authority.validation.records import AuditRow

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)
SALT = bytes(range(16))
ROW = AuditRow(
    b"\xaa" * 48, 7, 3, "PASS", "genuine", "Pi-1", NOW, "192.0.2.7",
    "key", "replayed", "request", 4, b"\xbb" * 16, 1_500,
)  # fmt: skip


def test_the_fields_are_those_of_the_record() -> None:
    """A new column of the audit row must be added to its leaf."""
    assert AuditRow._fields == ROW_FIELDS


def test_the_documented_encoding() -> None:
    """Computed here by hand, as docs/operate/tamper-evidence.md describes it."""
    micros = int(NOW.timestamp()) * 1_000_000 + 123_456
    commitment = sha256(SALT + micros.to_bytes(8, "big") + b"\1" + b"192.0.2.7").digest()
    assert commit_to(SALT, NOW, "192.0.2.7") == commitment
    numbers = struct.pack(">HHHqqqq", 0, 48, 16, 7, 3, 4, 1_500)
    texts = b"PASS\0genuine\0Pi-1\0key\0replayed\0request"
    encoded = b"\0" + numbers + commitment + b"\xaa" * 48 + b"\xbb" * 16 + texts
    assert hash_rows([ROW], SALT) == [sha256(encoded).digest()]


CHANGES: dict[str, list[Any]] = {
    "encrypted_nuc_hash": [b"", b"\xaa" * 47, b"\xaa" * 49, b"\xaa" * 47 + b"\xab"],
    "table_id": [8, -7],
    "key_index": [4],
    "validation_result": ["FAIL", "PASSg"],
    "reason": ["not_opened", ""],
    "device_serial": [None, "", "Pi-2", "Pi-1key"],
    "validated_at": [NOW + timedelta(microseconds=1), NOW - timedelta(days=365)],
    "request_ip": [None, "", "192.0.2.8"],
    "caller": [None, "", "kez"],
    "repeat": [None, ""],
    "request_id": [None, "", "Request"],
    "batch_position": [None, 0, 5],
    "token_digest": [None, b"", b"\xbb" * 15],
    "waited_us": [None, 0, 1_501],
}


def test_each_change_of_a_column_changes_the_leaf() -> None:
    """Threat 46: also a change to NULL, to an empty text, and from one column into the next."""
    rows = [ROW] + [
        ROW._replace(**{name: value}) for name, values in CHANGES.items() for value in values
    ]
    assert CHANGES.keys() == set(ROW_FIELDS)
    assert len(set(hash_rows(rows, SALT))) == len(rows)
    assert len({hash_stored_row(row, SALT, None) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device_serial", "Pi-1\0key"),
        ("validation_result", None),
        ("encrypted_nuc_hash", None),
        ("table_id", None),
        ("table_id", 2**63),
        ("validated_at", None),
        ("reason", "\ud800"),
    ],
)
def test_rows_that_no_program_writes(name: str, value: object) -> None:
    """Whoever changes the database can store anything. It has no leaf, or another one."""
    row = [value if field == name else old for field, old in zip(ROW_FIELDS, ROW, strict=True)]
    assert hash_stored_row(row, SALT, None) != hash_rows([ROW], SALT)[0]


def test_dropped_time_and_address() -> None:
    """With the commitment in their place the leaf stays; with another one it does not."""
    coarse = ROW._replace(validated_at=NOW.replace(minute=0, second=0), request_ip=None)
    kept = commit_to(SALT, NOW, "192.0.2.7")
    [leaf] = hash_rows([ROW], SALT)
    assert hash_stored_row(coarse, b"", kept) == leaf
    assert hash_stored_row(coarse, b"", commit_to(SALT, NOW, None)) != leaf


def test_acts_are_hashed_as_json() -> None:
    """Times in UTC with microseconds, text escaped, NULL as null."""
    time = NOW.astimezone(tz=None)
    expected = b'\0[1,"2026-11-30T12:00:00.123456Z","caf\\u00e9",null]'
    assert hash_act([1, time, "caf\u00e9", None]) == sha256(expected).digest()


def test_cut_leaves() -> None:
    """16 bytes of each."""
    assert cut([b"a" * 32, b"b" * 32]) == b"a" * 16 + b"b" * 16
