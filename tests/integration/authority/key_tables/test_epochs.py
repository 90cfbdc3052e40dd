"""Rotation of key tables: what changes, what is refused, and what a killed rotation leaves."""

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background.overlap_expiry import OverlapExpiry
from birthmark_sma.authority.kek.rotation import rotate as rotate_kek
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.key_tables import epochs, holders
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import open_key_table_cache
from birthmark_sma.authority.key_tables.epochs import end_overlaps
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import TableRotationError
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import (
    TABLES,
    execute,
    new_authority,
    new_camera,
    opened,
    quiet,
    rows_of,
    small_settings,
)
from tests.support.cameras.table_epochs import MONTH, give_new_keys, let_overlaps_end, rotate
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import revoke_device
from tests.support.devices.batches import validation_under_way
from tests.support.programs.wrong_clock import trust_the_machine

ALL = range(TABLES)


def epochs_of(database: Database) -> dict[int, int]:
    """Return the epochs of all tables."""
    return dict(rows_of(database, "SELECT table_id, epoch FROM key_tables"))


def earlier_of(database: Database) -> dict[int, int]:
    """Return the epochs of the earlier keys."""
    return dict(rows_of(database, "SELECT table_id, epoch FROM earlier_table_keys"))


def generation_of(database: Database) -> int:
    """Return the generation of the tables."""
    with database.read() as connection:
        return key_table_store.find_generation(connection)


# --- one act


def test_chosen_tables_get_new_keys(authority: Authority, settings: Settings) -> None:
    """The others keep theirs; the earlier keys are kept beside the new ones."""
    before = authority.table_cache.keys
    states = rotate(authority, [4, 1, 4])
    assert [(each.table_id, each.epoch) for each in states] == [(1, 1), (4, 1)]
    assert epochs_of(authority.database) == {0: 0, 1: 1, 2: 0, 3: 0, 4: 1, 5: 0}
    assert earlier_of(authority.database) == {1: 0, 4: 0}
    with opened(settings) as other:
        keys = other.table_cache.keys
    for table_id in ALL:
        same = keys.current[table_id].master_key == before.current[table_id].master_key
        assert same == (table_id not in {1, 4})
    for table_id in (1, 4):
        assert keys.earlier[table_id].key.master_key == before.current[table_id].master_key
        span = keys.earlier[table_id].accepted_until - datetime.now(UTC)
        assert MONTH - timedelta(minutes=5) < span <= MONTH + timedelta(minutes=5)
    assert keys.generation == before.generation + 1


def test_without_an_overlap_no_key_is_kept(authority: Authority) -> None:
    """The earlier keys are gone at once."""
    states = rotate(authority, [2], timedelta())
    assert (states[0].epoch, states[0].accepted_until) == (1, None)
    assert earlier_of(authority.database) == {}
    assert [each.epoch for each in rotate(authority, [2], timedelta())] == [2]


@pytest.mark.parametrize("table_ids", [[-1], [TABLES], [0, 99], [2**40]])
def test_an_unknown_table_changes_nothing(authority: Authority, table_ids: list[int]) -> None:
    """Not even the tables beside it."""
    for act in (
        lambda: rotate(authority, table_ids),
        lambda: end_overlaps(authority.database, table_ids, actor=ACTOR),
    ):
        with pytest.raises(TableRotationError, match="There is no key table"):
            act()
    assert set(epochs_of(authority.database).values()) == {0}
    assert generation_of(authority.database) == 0


def test_a_table_has_two_live_keys_at_most(authority: Authority) -> None:
    """A second rotation is refused until the overlap has ended, and changes no other table."""
    rotate(authority, [3])
    with pytest.raises(TableRotationError, match=r"open until 20.*table 3\..*sma tables end"):
        rotate(authority)
    assert epochs_of(authority.database) == {each: int(each == 3) for each in ALL}
    assert end_overlaps(authority.database, [3], actor=ACTOR) == [3]
    assert end_overlaps(authority.database, ALL, actor=ACTOR) == []
    rotate(authority)
    assert epochs_of(authority.database)[3] == 2
    assert earlier_of(authority.database) == {each: int(each == 3) for each in ALL}


def test_two_rotations_at_once(authority: Authority, settings: Settings) -> None:
    """One rotates, the other is refused."""
    with opened(settings) as other:
        start = threading.Barrier(2)
        results: list[object] = []

        def work(at: Authority) -> None:
            start.wait(30)
            try:
                results.append(rotate(at))
            except TableRotationError as error:
                results.append(error)

        threads = [threading.Thread(target=work, args=(at,)) for at in (authority, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(isinstance(each, list) for each in results) == [False, True]
    assert set(epochs_of(authority.database).values()) == {1}


# --- the end of an overlap


def test_ended_keys_are_deleted_by_the_clock(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 45: only by a clock that is trusted, and only keys whose time has come."""
    rotate(authority, [1, 2])
    rotate(authority, [5], timedelta(days=3))
    task = OverlapExpiry(authority.database)
    let_overlaps_end(authority.database, 1, 2)
    if authority.database.dialect_name == "sqlite":
        task.work(datetime.now(UTC))
        assert earlier_of(authority.database).keys() == {1, 2, 5}
        with pytest.raises(TableRotationError, match="has ended; a running server"):
            rotate(authority, [1])
    trust_the_machine(monkeypatch)
    generation = generation_of(authority.database)
    task.work(datetime.now(UTC))
    assert earlier_of(authority.database).keys() == {5}
    assert generation_of(authority.database) == generation + 1
    task.work(datetime.now(UTC))
    assert generation_of(authority.database) == generation + 1


def test_the_next_rotation_deletes_what_has_ended(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server has to run for it."""
    trust_the_machine(monkeypatch)
    rotate(authority, [1, 2])
    let_overlaps_end(authority.database)
    rotate(authority, [2])
    assert earlier_of(authority.database) == {2: 1}
    assert epochs_of(authority.database)[2] == 2


def test_a_deleted_key_is_nowhere_in_the_file(tmp_path: Path) -> None:
    """SQLite overwrites it, so that a later backup or copy does not hold it."""
    with new_authority(small_settings(tmp_path, None)) as authority:
        query = "SELECT master_key FROM key_tables WHERE table_id = 2"
        [(wrapped,)] = rows_of(authority.database, query)
        rotate(authority, [2])
        end_overlaps(authority.database, [2], actor=ACTOR)
        files = list(tmp_path.glob("sma.db*"))
        assert len(files) > 1
        assert not any(wrapped in file.read_bytes() for file in files)


# --- wrapped keys


def test_a_key_of_another_epoch_does_not_unwrap(authority: Authority, settings: Settings) -> None:
    """Who can write into the database cannot undo a rotation."""
    rotate(authority, [2])
    execute(
        authority.database,
        "UPDATE key_tables SET master_key = (SELECT master_key FROM earlier_table_keys"
        " WHERE table_id = 2) WHERE table_id = 2",
    )
    keks = open_stored_secrets(authority.database, settings).keks
    with pytest.raises(Exception, match="wrapped under another key"):
        open_key_table_cache(authority.database, keks)


def test_both_keys_survive_a_rotation_of_the_kek(authority: Authority, settings: Settings) -> None:
    """Also a table that is rotated while the key-encryption key is."""
    rotate(authority, [1, 2])
    with authority.database.read() as connection:
        before = authority.table_cache.poll(connection)
    new_file = settings.data_dir / "new-key-encryption.key"
    new_file.touch(0o600)
    new_file.write_bytes(secrets.token_bytes(32))

    def wait(_seconds: float) -> None:
        rotate(authority, [4])

    new = NewSecret(new_kek_file=new_file)
    done = rotate_kek(authority.database, settings, new, quiet, wait, actor=ACTOR)
    assert (done.rewrapped.key_tables, done.rewrapped.earlier_table_keys) == (TABLES, 2)
    assert done.left.total == 0
    with opened(settings.model_copy(update={"kek_file": new_file})) as later:
        keys = later.table_cache.keys
    assert keys.earlier.keys() == {1, 2, 4}
    for table_id in (1, 2):
        assert keys.current[table_id].master_key == before.current[table_id].master_key
        assert keys.earlier[table_id].key.master_key == before.earlier[table_id].key.master_key
    assert keys.earlier[4].key.master_key == before.current[4].master_key


# --- killed


def _rotate_in_child(settings: Settings) -> None:
    database = open_database(settings.resolved_database_url)
    keks = open_stored_secrets(database, settings).keks
    epochs.rotate(database, keks, ALL, MONTH, actor=ACTOR)
    os._exit(0)


def _killed_before(call: int) -> Callable[[Settings], None]:
    """Return the work of a child that kills itself before its n-th statement."""

    def work(settings: Settings) -> None:
        count = 0

        def trace(frame: object, event: str, _argument: object) -> None:
            nonlocal count
            code = frame.f_code  # type: ignore[attr-defined]
            is_statement = code.co_filename.endswith("key_tables/store.py")
            if event == "call" and is_statement and code.co_name.isidentifier():
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(trace)
        _rotate_in_child(settings)

    return work


def test_a_killed_rotation_leaves_all_or_nothing(authority: Authority, settings: Settings) -> None:
    """Threat 30: at any step of it, the tables are as before or as after."""
    endings = set()
    for call in range(1, 12):
        before = epochs_of(authority.database)
        child = get_context("fork").Process(target=_killed_before(call), args=(settings,))
        child.start()
        child.join(60)
        after = epochs_of(authority.database)
        rotated = {each: epoch + 1 for each, epoch in before.items()}
        assert after in (before, rotated)
        assert earlier_of(authority.database) == (before if after == rotated else {})
        assert (child.exitcode == 0) == (after == rotated)
        endings.add(child.exitcode)
        end_overlaps(authority.database, ALL, actor=ACTOR)
    assert endings == {0, -signal.SIGKILL}


# --- devices


def test_exposure_counts_shared_tables(authority: Authority) -> None:
    """By the number of tables that a device has of those that leaked; revoked ones are left out."""
    cameras = [new_camera(authority, f"camera-{number}") for number in range(12)]
    revoke_device(authority.database, "camera-11", "key_compromise")
    leaked = set(cameras[0].table_keys)
    expected = {1: 0, 2: 0, 3: 0}
    for camera in cameras[1:11]:
        if shared := len(leaked & set(camera.table_keys)):
            expected[shared] += 1
    with authority.database.read() as connection:
        found = holders.find_exposure(connection, sorted(leaked), without="camera-0")
        nothing = holders.find_exposure(connection, [])
    assert found.devices_by_shared == expected
    assert found.devices == sum(expected.values())
    assert found.devices_by_table == {
        table_id: sum(table_id in camera.table_keys for camera in cameras[:11])
        for table_id in sorted(leaked)
    }
    assert (nothing.devices, nothing.devices_by_table) == (0, {})


def test_stragglers_are_those_with_an_earlier_key(authority: Authority) -> None:
    """Until they get the new keys. Rows without epochs have the first keys."""
    cameras = [new_camera(authority, f"camera-{number}") for number in range(6)]
    execute(
        authority.database,
        "UPDATE registered_devices SET table_epochs = NULL WHERE device_serial = 'camera-4'",
    )
    revoke_device(authority.database, "camera-5", "key_compromise")
    rotate(authority)
    give_new_keys(authority, cameras[2])
    new_camera(authority, "camera-6")
    expected = ["camera-0", "camera-1", "camera-3", "camera-4"]
    with authority.database.read() as connection:
        assert holders.count_stragglers(connection, ALL) == 4
        found = holders.list_stragglers(connection, ALL, limit=10)
        assert [each.device_serial for each in found] == expected
        first = holders.list_stragglers(connection, ALL, limit=2)
        rest = holders.list_stragglers(connection, ALL, limit=9, after=first[-1].device_serial)
        assert [*first, *rest] == found
        [table_id, *_] = sorted(cameras[4].table_keys)
        some = holders.list_stragglers(connection, [table_id], limit=10, after="camera-3")
        assert holders.count_stragglers(connection, []) == 0
    assert {key.table_id for key in found[0].outdated} == set(cameras[0].table_keys)
    assert [(key.table_id, key.epoch, key.current_epoch) for key in some[0].outdated] == [
        (table_id, 0, 1)
    ]
    assert all(key.accepted_until is not None for each in found for key in each.outdated)
    end_overlaps(authority.database, ALL, actor=ACTOR)
    with authority.database.read() as connection:
        found = holders.list_stragglers(connection, ALL, limit=10)
    assert [each.device_serial for each in found] == expected
    assert all(key.accepted_until is None for each in found for key in each.outdated)


def test_new_devices_get_the_newest_keys(authority: Authority, settings: Settings) -> None:
    """Also at once, in a process that did not rotate, and the register says so."""
    with opened(settings) as other:
        rotate(authority)
        camera = new_camera(other, "new")
        with other.database.read() as connection:
            keys = other.table_cache.poll(connection)
    for table_id, key in camera.table_keys.items():
        assert key == keys.current[table_id].master_key
    with authority.database.read() as connection:
        assert holders.list_stragglers(connection, ALL, limit=10) == []


# --- validations under way


@pytest.mark.parametrize("act", ["rotate", "end", "delete"])
def test_an_act_commits_after_the_validations_under_way(authority: Authority, act: str) -> None:
    """No verdict by the keys before is committed after it, in any process."""
    database = authority.database
    if act != "rotate":
        rotate(authority, [1], MONTH)
    acts: dict[str, Callable[[], object]] = {
        "rotate": lambda: rotate(authority, [1], MONTH),
        "end": lambda: end_overlaps(database, [1], actor=ACTOR),
        "delete": lambda: epochs.delete_ended(database, datetime.now(UTC) + MONTH * 2),
    }
    before = generation_of(database)
    with ThreadPoolExecutor(1) as thread:
        with validation_under_way(database):
            changed = thread.submit(acts[act])
            with pytest.raises(TimeoutError):
                changed.result(0.5)
            assert generation_of(database) == before
        changed.result(20)
    assert generation_of(database) > before
