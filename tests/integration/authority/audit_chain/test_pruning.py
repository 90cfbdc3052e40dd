"""Retention leaves a trail that is verifiable, and only what it signed may be missing."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from birthmark_sma.authority.audit_chain import pruning
from birthmark_sma.authority.background.retention import prune
from birthmark_sma.storage.engine import Database
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail
from tests.support.days import today


def never(_seconds: float) -> bool:
    """Return that the work goes on."""
    return False


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """Two writers, with rows of three days."""
    trail = ChainedTrail(database, tmp_path)
    for days_ago in (9, 8, 0):
        trail.validate("aa", days_ago)
    trail.validate("bb", 9)
    trail.act("one")
    trail.checkpoint()
    return trail


def test_pruned_days(trail: ChainedTrail) -> None:
    """Their batches are gone but for the last of each chain, and rows of later days count."""
    prune(trail.database, today() - timedelta(days=3), never, keks=trail.keks)
    left = "SELECT writer, sequence FROM audit_batches ORDER BY writer, sequence"
    assert rows_of(trail.database, left) == [("aa", 3), ("acts", 1), ("bb", 1)]
    trail.validate("aa")
    trail.validate("bb")
    trail.checkpoint()
    found, done = trail.verify_and_count()
    assert (found, done.rows, done.pruned_rows) == ([], 12, 4)
    execute(trail.database, "DELETE FROM validation_history WHERE key_index = 1")
    assert {each.fault for each in trail.verify()} == {"deleted"}


def test_a_second_time_nothing_is_signed(trail: ChainedTrail) -> None:
    """Retention runs each hour: it signs only what no checkpoint permits yet."""
    for _ in range(2):
        prune(trail.database, today() - timedelta(days=3), never, keks=trail.keks)
    assert len(trail.notes()) == 2
    prune(trail.database, today() - timedelta(days=2), never, keks=trail.keks)
    assert trail.verify() == []


def test_a_chain_whose_clock_went_back(database: Database, tmp_path: Path) -> None:
    """Its batches cannot go yet, because the first is young; that its old rows go is signed."""
    trail = ChainedTrail(database, tmp_path)
    trail.validate("bb", 9)
    trail.validate("aa", 0)
    trail.validate("aa", 8)
    trail.validate("aa", 6)
    trail.validate("aa", 0)
    trail.checkpoint()
    for days in (7, 5):
        prune(trail.database, today() - timedelta(days=days), never, keks=trail.keks)
        assert trail.verify() == []
    prune(trail.database, today() - timedelta(days=5), never, keks=trail.keks)
    assert len(trail.notes()) == 3


def test_interrupted(trail: ChainedTrail) -> None:
    """Killed between any two steps, the trail is verifiable; the next run goes on."""
    steps = 0
    while True:
        steps += 1
        left = iter(range(steps))
        prune(
            trail.database,
            today() - timedelta(days=3),
            lambda _: next(left, None) is None,  # noqa: B023  called within this round
            keks=trail.keks,
        )
        assert trail.verify() == []
        if next(left, None) is not None:
            break
    assert rows_of(trail.database, "SELECT count(*) FROM audit_batches") == [(3,)]


def test_before_any_server_has_run(trail: ChainedTrail) -> None:
    """As after a migration: there is no key yet, and what is pruned must be signed."""
    execute(trail.database, "DELETE FROM audit_checkpoints")
    execute(trail.database, "DELETE FROM audit_keys")
    prune(trail.database, today() - timedelta(days=3), never, keks=trail.keks)
    found, done = trail.verify_and_count()
    assert (found, done.pruned_rows, done.checkpoints) == ([], 4, 1)


def test_without_a_signature(trail: ChainedTrail) -> None:
    """Threat 46: nobody without the key can say that retention has deleted rows."""
    prune(trail.database, today() - timedelta(days=3), never, keks=None)
    assert {each.fault for each in trail.verify()} == {"deleted"}
    assert len(trail.verify()) == 12


def test_without_a_key_yet(trail: ChainedTrail) -> None:
    """As after a migration, before a server ran: the key is made, and then it signs."""
    for table in ("audit_checkpoints", "audit_keys"):
        execute(trail.database, f"DELETE FROM {table}")
    prune(trail.database, today() - timedelta(days=3), never, keks=trail.keks)
    assert trail.verify() == []


def test_acts_stay(trail: ChainedTrail) -> None:
    """Only a sandbox deletes acts, and signs that."""
    execute(trail.database, "DELETE FROM administrative_acts")
    later = today() + timedelta(days=1)
    with trail.database.write() as transaction:
        pruning.permit(transaction, trail.keks, later)
    assert ("deleted", "act 1") in [each[:2] for each in trail.verify()]
    with trail.database.write() as transaction:
        pruning.permit(transaction, trail.keks, later + timedelta(days=1), acts=True)
    assert [each for each in trail.verify() if "act" in each.what] == []


def test_checkpoints_at_one_time(trail: ChainedTrail) -> None:
    """Several processes make one after the other, and each fits the one before."""
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(3):
                trail.validate(name)
                trail.database.transact(trail.sign)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(name,)) for name in ("cc", "dd", "ee")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert trail.verify() == []
