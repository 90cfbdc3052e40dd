"""Advisory locks: each job excludes itself, and no other."""

import re
from pathlib import Path

import pytest

import birthmark_sma
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.locks import AdvisoryLock, only_one, wait_for_lock


def test_no_two_jobs_share_a_number() -> None:
    """An alias would be a second name in __members__, and missing from the iteration."""
    assert len(AdvisoryLock.__members__) == len({lock.value for lock in AdvisoryLock})


def test_every_number_is_from_the_list() -> None:
    package = Path(birthmark_sma.__file__).parent
    numbers = {
        path.name: re.findall(r"0x5_3A_\d+", path.read_text()) for path in package.rglob("*.py")
    }
    assert [name for name, found in numbers.items() if found] == ["locks.py"]


@pytest.mark.parametrize(
    "other", [each for each in AdvisoryLock if each is not AdvisoryLock.KEY_ROTATION]
)
def test_a_job_is_not_kept_from_its_turn_by_another(postgres_url: str, other: AdvisoryLock) -> None:
    """Partitions and key rotation once failed while the other ran."""
    database = open_database(postgres_url)
    try:
        with database.write() as transaction:
            wait_for_lock(transaction, other)
            with only_one(database, AdvisoryLock.KEY_ROTATION) as alone:
                assert alone
            with only_one(database, other) as alone:
                assert not alone
    finally:
        database.close()


def test_on_sqlite_each_job_has_a_lock_file_while_it_runs(tmp_path: Path) -> None:
    """One job excludes itself and no other, and nothing stays behind."""
    database = open_database(f"sqlite:///{tmp_path / 'sma.db'}")
    job, other = AdvisoryLock.KEY_ROTATION, AdvisoryLock.CRL_PUBLICATION
    try:
        for _ in range(2):
            with only_one(database, job) as first, only_one(database, other) as second:
                assert first
                assert second
                with only_one(database, job) as again:
                    assert not again
                assert len(list(tmp_path.iterdir())) == 2
            assert list(tmp_path.iterdir()) == []
    finally:
        database.close()


def test_a_lock_file_that_was_left_behind_locks_nobody_out(tmp_path: Path) -> None:
    """Its holder was killed: the operating system has let go of the lock."""
    (tmp_path / "sma.db-key_rotation").touch(0o600)
    database = open_database(f"sqlite:///{tmp_path / 'sma.db'}")
    try:
        with only_one(database, AdvisoryLock.KEY_ROTATION) as alone:
            assert alone
        assert list(tmp_path.iterdir()) == []
    finally:
        database.close()
