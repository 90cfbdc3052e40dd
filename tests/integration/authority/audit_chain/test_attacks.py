"""Threat 46: whoever can change the database cannot change the trail unnoticed.

Each attack is SQL on a trail that was verified before, and `verify` names what it did.
"""

from pathlib import Path

import pytest

from birthmark_sma.authority.audit_chain.batches import ROW_FIELDS
from birthmark_sma.storage.engine import Database
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail

IDS = "SELECT id FROM validation_history ORDER BY id"


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """Two writers, of today and yesterday, acts, and three checkpoints that sign them all."""
    trail = ChainedTrail(database, tmp_path)
    for days_ago in (1, 0, 0):
        for writer in ("aa", "bb"):
            trail.validate(writer, days_ago)
        trail.act("one")
        trail.act("several", "devices", "caf\u00e9")
        trail.checkpoint()
    found, done = trail.verify_and_count()
    assert found == []
    assert (done.rows, done.acts, done.batches, done.checkpoints, done.chains) == (24, 6, 12, 3, 3)
    return trail


def copy_of(database: Database, table: str, row: str, **changed: str) -> str:
    """Return the INSERT of a copy of a row with some columns changed."""
    names = {
        "validation_history": ["id", *ROW_FIELDS],
        "administrative_acts": [
            "id", "acted_at", "act", "actor", "role", "source", "request_id", "subject_kind",
            "subject", "subjects", "reason", "details",
        ],
        "act_subjects": ["act_id", "subject", "before", "after"],
        "audit_batches": [
            "writer", "sequence", "kind", "hour", "first_id", "rows", "root", "head", "salt",
            "leaves",
        ],
        "audit_checkpoints": ["number", "made_at", "lists_all", "note"],
    }[table]  # fmt: skip
    values = ", ".join(changed.get(name, name) for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} WHERE {row}"


ROW_CHANGES = {
    "encrypted_nuc_hash": "token_digest",
    "table_id": "table_id + 1",
    "key_index": "key_index + 1",
    "validation_result": "'PASS'",
    "reason": "'genuine'",
    "device_serial": "'another'",
    "request_ip": "NULL",
    "caller": "''",
    "repeat": "NULL",
    "request_id": "'another'",
    "batch_position": "0",
    "token_digest": "encrypted_nuc_hash",
    "waited_us": "NULL",
}


def row_id(trail: ChainedTrail, place: int) -> int:
    """Return the id of a row by its place."""
    number: int = rows_of(trail.database, IDS)[place][0]
    return number


@pytest.mark.parametrize("column", ROW_CHANGES)
def test_a_changed_row(trail: ChainedTrail, column: str) -> None:
    """Threat 46: it is named, whatever column it is."""
    changed = row_id(trail, 9)
    execute(
        trail.database,
        f"UPDATE validation_history SET {column} = {ROW_CHANGES[column]} WHERE id = {changed}",
    )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {changed}")]


def test_a_row_of_another_time(trail: ChainedTrail) -> None:
    """Within its day it is changed; on another day it is missing here and strange there."""
    changed = row_id(trail, 9)
    later = "SELECT max(validated_at) FROM validation_history"
    execute(
        trail.database,
        f"UPDATE validation_history SET validated_at = ({later}) WHERE id = {changed}",
    )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {changed}")]
    earlier = "SELECT min(validated_at) FROM validation_history"
    execute(
        trail.database,
        f"UPDATE validation_history SET validated_at = ({earlier}) WHERE id = {changed}",
    )
    assert {each[:2] for each in trail.verify()} == {
        ("inserted", f"row {changed}"),
        ("deleted", f"row {changed}"),
    }


def test_a_deleted_row(trail: ChainedTrail) -> None:
    """Also the first and the last of all."""
    for place in (9, 0, -1):
        deleted = row_id(trail, place)
        execute(trail.database, f"DELETE FROM validation_history WHERE id = {deleted}")
        assert ("deleted", f"row {deleted}") in [each[:2] for each in trail.verify()]
    assert len(trail.verify()) == 3


def test_inserted_and_doubled_rows(trail: ChainedTrail) -> None:
    """A copy with an id of its own, and on PostgreSQL, which has no key there, with the same id."""
    some, new = row_id(trail, 9), 999_999_999
    insert = copy_of(trail.database, "validation_history", f"id = {some}", id=str(new))
    execute(trail.database, insert)
    assert [each[:2] for each in trail.verify()] == [("inserted", f"row {new}")]
    execute(trail.database, f"DELETE FROM validation_history WHERE id = {new}")
    if trail.database.dialect_name == "postgresql":
        execute(trail.database, copy_of(trail.database, "validation_history", f"id = {some}"))
        assert [each[:2] for each in trail.verify()] == [("doubled", f"row {some}")]


def test_rows_in_another_order(trail: ChainedTrail) -> None:
    """Each is found where the other was."""
    first, second = row_id(trail, 9), row_id(trail, 10)
    for statement in (
        f"UPDATE validation_history SET id = -1 WHERE id = {first}",
        f"UPDATE validation_history SET id = {first} WHERE id = {second}",
        f"UPDATE validation_history SET id = {second} WHERE id = -1",
    ):
        execute(trail.database, statement)
    assert trail.verify() == [
        ("moved", f"row {first}", f"it was row {second}"),
        ("moved", f"row {second}", f"it was row {first}"),
    ]


BATCH = "writer = 'aa' AND sequence = 2"
ATTACKS: dict[str, tuple[list[str], set[tuple[str, str]]]] = {
    "a batch is deleted with its rows": (
        [
            f"DELETE FROM validation_history WHERE id >= (SELECT first_id FROM audit_batches"
            f" WHERE {BATCH}) AND id < (SELECT first_id + rows FROM audit_batches WHERE {BATCH})",
            f"DELETE FROM audit_batches WHERE {BATCH}",
        ],
        {("deleted", "batch 2 of chain aa")},
    ),
    "the root of a batch": (
        [f"UPDATE audit_batches SET root = head WHERE {BATCH}"],
        {("changed", "batch 2 of chain aa")},
    ),
    "the head of a batch": (
        [f"UPDATE audit_batches SET head = root WHERE {BATCH}"],
        {("changed", "batch 2 of chain aa"), ("changed", "batch 3 of chain aa")},
    ),
    "the leaves of a batch": (
        [f"UPDATE audit_batches SET leaves = head WHERE {BATCH}"],
        {("changed", "batch 2 of chain aa")},
    ),
    "the salt of a batch": (
        [f"UPDATE audit_batches SET salt = head WHERE {BATCH}"],
        {("changed", "batch 2 of chain aa")},
    ),
    "a batch gets another number": (
        [f"UPDATE audit_batches SET sequence = 7 WHERE {BATCH}"],
        {
            ("deleted", "batch 2 of chain aa"),
            ("deleted", "batches 4 to 6 of chain aa"),
        },
    ),
    "batches change places": (
        [
            "UPDATE audit_batches SET sequence = 20 WHERE writer = 'aa' AND sequence = 2",
            "UPDATE audit_batches SET sequence = 2 WHERE writer = 'aa' AND sequence = 3",
            "UPDATE audit_batches SET sequence = 3 WHERE writer = 'aa' AND sequence = 20",
        ],
        {("changed", "batch 2 of chain aa"), ("changed", "batch 3 of chain aa")},
    ),
    "a chain is deleted": (
        ["DELETE FROM audit_batches WHERE writer = 'bb'"],
        {("deleted", "batches 1 to 3 of chain bb")},
    ),
    "an act is changed": (
        ["UPDATE administrative_acts SET actor = 'nobody' WHERE id = 3"],
        {("changed", "act 3")},
    ),
    "an act is deleted": (
        ["DELETE FROM administrative_acts WHERE id = 3"],
        {("deleted", "act 3")},
    ),
    "acts change places": (
        [
            "UPDATE administrative_acts SET id = 99 WHERE id = 1",
            "UPDATE administrative_acts SET id = 1 WHERE id = 3",
            "UPDATE administrative_acts SET id = 3 WHERE id = 99",
        ],
        {("changed", "act 1"), ("changed", "act 3")},
    ),
    "a subject is changed": (
        ["UPDATE act_subjects SET after = '{}' WHERE act_id = 2 AND subject = 'devices'"],
        {("changed", "subject 'devices' of act 2")},
    ),
    "a subject is deleted": (
        ["DELETE FROM act_subjects WHERE act_id = 2 AND subject = 'devices'"],
        {("deleted", "a subject of act 2")},
    ),
    "a checkpoint is deleted": (
        ["DELETE FROM audit_checkpoints WHERE number = 2"],
        {("deleted", "checkpoint 2")},
    ),
    "a checkpoint is changed": (
        ["UPDATE audit_checkpoints SET note = replace(note, 'time 2', 'time 3') WHERE number = 2"],
        {("changed", "checkpoint 2")},
    ),
    "a subject of no act": (
        ["INSERT INTO act_subjects (act_id, subject) VALUES (77, 'x'), (-1, 'y')"],
        {("inserted", "subject 'x' of act 77"), ("inserted", "subject 'y' of act -1")},
    ),
    "all of a writer is deleted": (
        [
            "DELETE FROM validation_history WHERE EXISTS (SELECT 1 FROM audit_batches"
            " WHERE writer = 'aa' AND id >= first_id AND id < first_id + rows)",
            "DELETE FROM audit_batches WHERE writer = 'aa'",
        ],
        {("deleted", "batches 1 to 3 of chain aa")},
    ),
    "all batches are deleted": (
        ["DELETE FROM audit_batches"],
        {
            ("deleted", "batches 1 to 3 of chain aa"),
            ("deleted", "batches 1 to 3 of chain bb"),
            ("deleted", "batches 1 to 6 of chain acts"),
            *(("inserted", f"act {number}") for number in range(1, 7)),
        },
    ),
    "the columns of a checkpoint": (
        [
            "UPDATE audit_checkpoints SET lists_all = (1 = 0) WHERE number = 1",
            "UPDATE audit_checkpoints SET pruned_before = made_at WHERE number = 2",
            "UPDATE audit_checkpoints SET coarse_before = made_at WHERE number = 3",
        ],
        {("changed", f"checkpoint {number}") for number in (1, 2, 3)},
    ),
    "the key is deleted": (
        ["DELETE FROM audit_keys"],
        {("deleted", "the key of checkpoints")},
    ),
    "another key is inserted": (
        [
            "INSERT INTO audit_keys (key_id, public_key, wrapped_private_key, kek_id, created_at)"
            " SELECT 2, public_key, wrapped_private_key, kek_id, created_at FROM audit_keys"
        ],
        {("inserted", "key 2 of checkpoints")},
    ),
    "checkpoints change places": (
        [
            "UPDATE audit_checkpoints SET number = 99 WHERE number = 1",
            "UPDATE audit_checkpoints SET number = 1 WHERE number = 2",
            "UPDATE audit_checkpoints SET number = 2 WHERE number = 99",
        ],
        {("changed", "checkpoint 1"), ("changed", "checkpoint 2")},
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(trail: ChainedTrail, name: str) -> None:
    """Threat 46: batches, acts, their subjects and checkpoints are named."""
    statements, expected = ATTACKS[name]
    for statement in statements:
        execute(trail.database, statement)
    found = {each[:2] for each in trail.verify()}
    # Rows of a batch that is gone or damaged are named as well.
    assert expected <= found, found
    others = {what for _, what in found - expected}
    assert all(each.startswith(("row ", "batch ", "checkpoint ")) for each in others), others


@pytest.mark.parametrize(
    ("table", "row", "changed", "expected"),
    [
        ("audit_batches", BATCH, {"sequence": "4"}, ("changed", "batch 4 of chain aa")),
        ("administrative_acts", "id = 3", {"id": "77"}, ("inserted", "act 77")),
        (
            "act_subjects",
            "act_id = 2 AND subject = 'devices'",
            {"subject": "'new'"},
            ("changed", "subject 'new' of act 2"),
        ),
        ("audit_checkpoints", "number = 3", {"number": "4"}, ("changed", "checkpoint 4")),
    ],
)
def test_copied_rows(
    trail: ChainedTrail, table: str, row: str, changed: dict[str, str], expected: tuple[str, str]
) -> None:
    """A primary key forbids the same row twice, so a copy has another number or name."""
    execute(trail.database, copy_of(trail.database, table, row, **changed))
    assert expected in [each[:2] for each in trail.verify()]


def test_the_end_of_everything_is_cut(trail: ChainedTrail) -> None:
    """Only checkpoints that were kept elsewhere show it."""
    kept = trail.notes()
    first = "(SELECT first_id FROM audit_batches WHERE writer = '{}' AND sequence = 3)"
    for writer in ("aa", "bb"):
        batch = first.format(writer)
        execute(
            trail.database,
            f"DELETE FROM validation_history WHERE id >= {batch} AND id < {batch} + 4",
        )
    execute(trail.database, "DELETE FROM administrative_acts WHERE id >= 5")
    execute(trail.database, "DELETE FROM act_subjects WHERE act_id >= 5")
    execute(
        trail.database,
        "DELETE FROM audit_batches WHERE (writer <> 'acts' AND sequence = 3) OR sequence >= 5",
    )
    execute(trail.database, "DELETE FROM audit_checkpoints WHERE number = 3")
    assert trail.verify() == []
    assert {each[:2] for each in trail.verify(kept)} == {
        ("deleted", "checkpoint 3"),
        ("deleted", "batch 3 of chain aa"),
        ("deleted", "batch 3 of chain bb"),
        ("deleted", "batches 5 to 6 of chain acts"),
    }
