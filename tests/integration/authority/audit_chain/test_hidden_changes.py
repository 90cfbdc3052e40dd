"""Threat 46: changes that hide behind what a verifier allows, or that it cannot even read."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark_sma.authority.audit_chain.batches import commit_to
from birthmark_sma.authority.background.retention import prune
from birthmark_sma.storage.engine import Database
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail
from tests.support.days import today

SOME = "SELECT id FROM validation_history ORDER BY id LIMIT 1 OFFSET 1"


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """A trail with rows, acts and a checkpoint."""
    trail = ChainedTrail(database, tmp_path)
    trail.validate("aa")
    trail.act("one")
    trail.act("several", "devices")
    trail.checkpoint()
    assert trail.verify() == []
    return trail


def test_a_commitment_beside_what_it_commits_to(trail: ChainedTrail) -> None:
    """The commitment stands for a time and an address that are gone, not for others."""
    [(salt,)] = rows_of(trail.database, "SELECT salt FROM audit_batches WHERE writer = 'aa'")
    [(number, time)] = rows_of(
        trail.database, f"SELECT id, validated_at FROM validation_history WHERE id = ({SOME})"
    )
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    execute(
        trail.database,
        "UPDATE validation_history SET request_ip = '203.0.113.9', time_and_ip_commitment = :kept"
        f" WHERE id = {number}",
        kept=commit_to(bytes(salt), time.astimezone(UTC), "192.0.2.7"),
    )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {number}")]


@pytest.mark.parametrize("act", [0, 2, 999_999])
def test_subjects_of_no_act(trail: ChainedTrail, act: int) -> None:
    """They are named, also those of a number that no act has."""
    if act == 2:
        execute(trail.database, "DELETE FROM administrative_acts WHERE id = 2")
    execute(
        trail.database,
        "INSERT INTO act_subjects (act_id, subject, after) VALUES (:act, 'forged', '{}')",
        act=act,
    )
    # The subjects of an act that was deleted are named with it.
    named = ("deleted", "act 2") if act == 2 else ("inserted", f"subject 'forged' of act {act}")
    assert named in [each[:2] for each in trail.verify()]


UNREADABLE = {
    "reason": ("UPDATE validation_history SET reason = x'00ff' WHERE id = ({row})", "row {row}"),
    "serial": (
        "UPDATE validation_history SET device_serial = x'ff' WHERE id = ({row})",
        "row {row}",
    ),
    "invalid UTF-8": (
        "UPDATE validation_history SET caller = CAST(x'ff' AS TEXT) WHERE id = ({row})",
        "row {row}",
    ),
    "a time that is none": (
        "UPDATE validation_history SET validated_at = substr(validated_at, 1, 11) || 'noon'"
        " WHERE id = ({row})",
        "row {row}",
    ),
    "a time in letters": (
        "UPDATE validation_history SET validated_at = 'yesterday' WHERE id = ({row})",
        "row {row}",
    ),
    "a number of rows": (
        "UPDATE audit_batches SET rows = 'four' WHERE writer = 'aa'", "batch 1 of chain aa"
    ),
    "a first id": (
        "UPDATE audit_batches SET first_id = 'one' WHERE writer = 'aa'", "batch 1 of chain aa"
    ),
    "an hour": (
        "UPDATE audit_batches SET hour = 'noon' WHERE writer = 'aa'", "batch 1 of chain aa"
    ),
    "a root": ("UPDATE audit_batches SET root = 'root' WHERE writer = 'aa'", "batch 1 of chain aa"),
    "leaves": ("UPDATE audit_batches SET leaves = 'x' WHERE writer = 'aa'", "batch 1 of chain aa"),
    "salt": ("UPDATE audit_batches SET salt = 'x' WHERE writer = 'aa'", "batch 1 of chain aa"),
    "a sequence": (
        "UPDATE audit_batches SET sequence = 'one' WHERE writer = 'aa'", "batch one of chain aa"
    ),
    "a note": ("UPDATE audit_checkpoints SET note = x'00ff'", "checkpoint 1"),
    "the number of a checkpoint": ("UPDATE audit_checkpoints SET number = 2.5", "checkpoint 2.5"),
    "the time of an act": (
        "UPDATE administrative_acts SET acted_at = 'noon' WHERE id = 1", "act 1"
    ),
    "the actor of an act": (
        "UPDATE administrative_acts SET actor = x'ff' WHERE id = 1", "act 1"
    ),
    "a subject": (
        "UPDATE act_subjects SET after = x'ff' WHERE act_id = 2 AND subject = 'devices'",
        "subject 'devices' of act 2",
    ),
}  # fmt: skip
TIMES = {
    "row": (
        "UPDATE validation_history SET validated_at = CAST(:time AS timestamptz) WHERE id = {row}",
        "row {row}",
    ),
    "batch": (
        "UPDATE audit_batches SET hour = CAST(:time AS timestamptz) WHERE writer = 'aa'",
        "batch 1 of chain aa",
    ),
    "act": (
        "UPDATE administrative_acts SET acted_at = CAST(:time AS timestamptz) WHERE id = 1",
        "act 1",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_values_of_another_type(trail: ChainedTrail, name: str) -> None:
    """SQLite stores any value in any column: it is named, and verification goes on."""
    statement, what = UNREADABLE[name]
    [(row,)] = rows_of(trail.database, SOME)
    execute(trail.database, statement.format(row=row))
    found = [each.what for each in trail.verify()]
    assert what.format(row=row) in found


@pytest.mark.parametrize("time", ["infinity", "-infinity", "294276-01-01", "4713-01-01 BC"])
@pytest.mark.parametrize("place", TIMES)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_times_that_python_has_not(trail: ChainedTrail, place: str, time: str) -> None:
    """PostgreSQL has times before year 1 and after 9999."""
    statement, what = TIMES[place]
    [(row,)] = rows_of(trail.database, SOME)
    execute(trail.database, statement.format(row=row), time=time)
    assert what.format(row=row) in [each.what for each in trail.verify()]


def test_the_last_batch_of_a_pruned_chain(trail: ChainedTrail) -> None:
    """It stays without those before it, so its content is not proved: it must not cover a row."""
    for _ in range(2):
        trail.validate("bb", 9)
    prune(trail.database, today() - timedelta(days=3), lambda _: False, keks=trail.keks)
    assert trail.verify() == []
    execute(
        trail.database,
        "UPDATE audit_batches SET hour = (SELECT hour FROM audit_batches WHERE writer = 'aa'),"
        " root = :root, first_id = 77, rows = 1, leaves = NULL WHERE writer = 'bb'",
        root=bytes(32),
    )
    assert ("changed", "batch 2 of chain bb") in [each[:2] for each in trail.verify()]


def test_checkpoints_that_were_kept_twice(trail: ChainedTrail) -> None:
    """A keeper that began again has some of them twice."""
    trail.validate("aa")
    trail.checkpoint()
    assert trail.verify([*trail.notes(), *trail.notes()]) == []
