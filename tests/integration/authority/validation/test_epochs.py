"""Verdicts while key tables are rotated: on every process, under each key, to the last token."""

import asyncio
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.key_tables.epochs import end_overlaps
from birthmark_sma.authority.validation.records import FoundDevices
from birthmark_sma.config import Settings
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import (
    NORMATIVE,
    PUBLISHED_CLIENTS,
    Derivation,
    derive_key,
)
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import open_database
from tests.support.authorities import TABLES, new_camera, opened, request_for
from tests.support.cameras.camera import Camera
from tests.support.cameras.colliding_tokens import forge
from tests.support.cameras.table_epochs import give_new_keys, let_overlaps_end, rotate
from tests.support.devices.actors import ACTOR

CALLER = Caller("192.0.2.7")
ALL = range(TABLES)


def judge(authority: Authority, token: CameraToken, derivation: Derivation = NORMATIVE) -> Reason:
    """Return the reason for the verdict on a token."""
    return authority.validator.submit(token, CALLER, derivation).result(30).reason


def published(camera: Camera) -> CameraToken:
    """Return a token as a published client seals it."""
    [table_id, *_] = sorted(camera.table_keys)
    nonce = secrets.token_bytes(12)
    key = derive_key(camera.table_keys[table_id], 5, PUBLISHED_CLIENTS)
    return CameraToken(AESGCM(key).encrypt(nonce, camera.nuc_hash, None), table_id, 5, nonce)


def test_the_life_of_two_keys(authority: Authority) -> None:
    """Before, during and after the overlap; on each table of a camera, under both derivations."""
    old = new_camera(authority, "camera")
    rotate(authority)
    for table_id in old.table_keys:
        assert judge(authority, old.token(table_id)) is Reason.GENUINE
    assert judge(authority, published(old), PUBLISHED_CLIENTS) is Reason.GENUINE
    new = give_new_keys(authority, old)
    assert all(new.table_keys[each] != old.table_keys[each] for each in old.table_keys)
    for camera in (new, old):  # the old keys sealed the pictures that wait in its queue
        for table_id in camera.table_keys:
            assert judge(authority, camera.token(table_id)) is Reason.GENUINE
        assert judge(authority, published(camera), PUBLISHED_CLIENTS) is Reason.GENUINE
    let_overlaps_end(authority.database)
    assert judge(authority, old.token()) is Reason.EARLIER_EPOCH
    assert judge(authority, published(old), PUBLISHED_CLIENTS) is Reason.EARLIER_EPOCH
    assert judge(authority, new.token()) is Reason.GENUINE
    end_overlaps(authority.database, ALL, actor=ACTOR)
    assert judge(authority, old.token()) is Reason.NOT_OPENED
    assert judge(authority, new.token()) is Reason.GENUINE


def test_a_key_that_the_device_was_never_given(authority: Authority) -> None:
    """Who has the new keys of a table, and the NUC hash of a device that has not, does not pass."""
    victim = new_camera(authority, "victim")
    rotate(authority)
    with authority.database.read() as connection:
        keys = authority.table_cache.poll(connection)
    for table_id in victim.table_keys:
        token = victim.token(table_id, master_key=keys.current[table_id].master_key)
        assert judge(authority, token) is Reason.OTHER_EPOCH


def test_only_the_tables_that_were_rotated(authority: Authority) -> None:
    """A straggler passes on its other tables for ever."""
    camera = new_camera(authority, "camera")
    first, *others = sorted(camera.table_keys)
    rotate(authority, [first], timedelta())
    assert judge(authority, camera.token(first)) is Reason.NOT_OPENED
    for table_id in others:
        assert judge(authority, camera.token(table_id)) is Reason.GENUINE


def test_a_token_that_opens_under_both_keys(authority: Authority) -> None:
    """Threat 42: it fails, though both devices are registered and both keys are accepted."""
    table_id = 2
    earlier = authority.table_cache.keys.current[table_id].master_key
    rotate(authority)
    with authority.database.read() as connection:
        newest = authority.table_cache.poll(connection).current[table_id].master_key
    nonce = secrets.token_bytes(12)
    keys = [derive_key(master_key, 7) for master_key in (earlier, newest)]
    sealed = forge(keys, nonce)
    for number, key in enumerate(keys):
        nuc_hash = AESGCM(key).decrypt(nonce, sealed, None)
        authority.provisioner.provision_device(request_for(f"device-{number}", nuc_hash=nuc_hash))
    token = CameraToken(sealed, table_id, 7, nonce)
    assert judge(authority, token) is Reason.OPENED_TWICE
    # Under one of the keys alone it would name a device.
    end_overlaps(authority.database, ALL, actor=ACTOR)
    assert judge(authority, token) in {Reason.GENUINE, Reason.TABLE_NOT_ASSIGNED}


def test_the_token_of_three_tables(authority: Authority) -> None:
    """Published cameras send one ciphertext with three tables: the same rules hold for each."""
    old = new_camera(authority, "camera")
    rotate(authority)
    new = give_new_keys(authority, old)

    def judge_legacy(camera: Camera) -> Reason:
        token = published(camera)
        others = [
            replace(token, table_id=table_id, key_index=6)
            for table_id in camera.table_keys
            if table_id != token.table_id
        ]
        [first, *alternatives] = [*others, token]  # the right one is the last

        async def ask() -> Reason:
            answer = await authority.validator.submit_async(
                first, CALLER, derivation=PUBLISHED_CLIENTS, alternatives=alternatives
            )
            return answer.reason

        return asyncio.run(ask())

    assert [judge_legacy(old), judge_legacy(new)] == [Reason.GENUINE] * 2
    let_overlaps_end(authority.database)
    assert [judge_legacy(old), judge_legacy(new)] == [Reason.EARLIER_EPOCH, Reason.GENUINE]


def test_another_process_judges_with_the_newest_keys(
    authority: Authority, settings: Settings
) -> None:
    """From the commit on, though nothing told it: a batch compares the generations."""
    with opened(settings) as other:
        old = new_camera(authority, "camera")
        rotate(authority)
        new = give_new_keys(authority, old)
        assert judge(other, new.token()) is Reason.GENUINE
        assert judge(other, old.token()) is Reason.GENUINE
        end_overlaps(authority.database, ALL, actor=ACTOR)
        assert judge(other, old.token()) is Reason.NOT_OPENED


def test_a_rotation_in_the_middle_of_a_batch(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens of it are judged under the keys of one generation: the one that was read last."""
    old = new_camera(authority, "camera")
    rotate(authority)
    new = give_new_keys(authority, old)
    store = authority.validator._store
    find = store.find_devices
    ended_late: list[int] = []

    def find_late(connection: Connection, nuc_hashes: Sequence[bytes]) -> FoundDevices:
        # SQLite allows no other writer meanwhile.
        if not ended_late and authority.database.dialect_name == "postgresql":
            ended_late.extend(end_overlaps(authority.database, ALL, actor=ACTOR))
        return find(connection, nuc_hashes)

    monkeypatch.setattr(store, "find_devices", find_late)
    ended = authority.database.dialect_name == "postgresql"
    assert judge(authority, old.token()) is (Reason.NOT_OPENED if ended else Reason.GENUINE)
    assert judge(authority, new.token()) is Reason.GENUINE


class Fleet:
    """Cameras that have tokens judged all the time, on two processes, in known phases."""

    def __init__(self, authorities: Sequence[Authority], cameras: Sequence[Camera]) -> None:
        self._authorities = authorities
        self.cameras = list(cameras)
        self.phase = 0
        self.wrong: list[object] = []
        self.judged = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(each,)) for each in authorities for _ in (1, 2)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and wait for the last verdicts."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, authority: Authority) -> None:
        while not self._stop.is_set():
            for camera in list(self.cameras):
                phase = self.phase
                reason = judge(authority, camera.token(secrets.choice(list(camera.table_keys))))
                if phase == self.phase:
                    self.judged += 1
                    self._check(camera, phase, reason)

    def _check(self, camera: Camera, phase: int, reason: Reason) -> None:
        ended = phase == 2 and camera.serial.startswith("old")
        expected = Reason.NOT_OPENED if ended else Reason.GENUINE
        if reason is not expected and not (phase == 1 and camera.serial.startswith("old")):
            self.wrong.append((camera.serial, phase, reason))


def test_no_token_is_lost_while_tables_are_rotated(
    authority: Authority, settings: Settings
) -> None:
    """None under a valid key fails; from the end of the overlap on, none under an ended one passes.

    Phase 0: all keys are valid, before, during and after the rotation. Phase 1: the overlaps are
    being ended. Phase 2: they have ended.
    """
    with opened(settings) as other:
        fleet = Fleet(
            [authority, other], [new_camera(authority, f"old-{number}") for number in range(3)]
        )
        try:
            rotate(authority)
            for number in range(3):
                fleet.cameras.append(new_camera(other, f"new-{number}"))
            moved = give_new_keys(authority, new_camera(authority, "new-3"))
            fleet.cameras.append(moved)
            wait_for(fleet, 40)
            fleet.phase = 1
            end_overlaps(authority.database, ALL, actor=ACTOR)
            fleet.phase = 2
            wait_for(fleet, 40)
        finally:
            fleet.close()
    assert fleet.wrong == []


def wait_for(fleet: Fleet, verdicts: int) -> None:
    """Wait until so many further tokens were judged."""
    until = fleet.judged + verdicts
    for _ in range(600):
        if fleet.judged >= until:
            return
        threading.Event().wait(0.05)
    raise AssertionError("no verdicts")


def test_a_database_without_an_authority_row_gives_no_verdict(
    authority: Authority, settings: Settings
) -> None:
    """Threat 19: damage is never a FAIL."""
    camera = new_camera(authority, "camera")
    rotate(authority)
    assert judge(authority, camera.token()) is Reason.GENUINE
    database = open_database(settings.resolved_database_url)
    with database.write() as transaction:
        transaction.exec_driver_sql("DELETE FROM authority")
    database.close()
    error = authority.validator.submit(camera.token(), CALLER).exception(30)
    assert error is not None
