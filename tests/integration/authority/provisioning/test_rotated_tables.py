"""Devices that are provisioned while key tables are rotated have the keys of the register."""

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority, opened_in_bulk
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.key_tables.epochs import end_overlaps
from birthmark_sma.authority.provisioning.issuance import DeviceIssuer, IssuedDevice, Provisioned
from birthmark_sma.authority.provisioning.registration import MOST_ATTEMPTS
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseUnavailableError, KeyTablesRotatedError
from tests.support.authorities import TABLES, camera_of, opened, request_for, rows_of
from tests.support.cameras.table_epochs import rotate
from tests.support.devices.actors import ACTOR


def device_of(authority: Authority, serial: str) -> Device:
    """Return a registered device."""
    with authority.database.read() as connection:
        device = device_store.find_device(connection, serial)
    assert device is not None
    return device


def check_keys(authority: Authority, serial: str, answer: Provisioned) -> None:
    """Assert that the device was given the keys of the epochs that are registered for it."""
    device = device_of(authority, serial)
    with authority.database.read() as connection:
        keys = authority.table_cache.poll(connection)
    assert answer.table_keys is not None
    for table_id, epoch in zip(device.table_assignments, device.table_epochs, strict=True):
        live = {key.epoch: key.master_key.hex() for key in keys.live_keys(table_id)}
        assert answer.table_keys[str(table_id)] == live[epoch]


@pytest.fixture
def rotations(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rotate all tables after a device was made and before it is registered, so many times.

    The list has the number of rotations that are left.
    """
    left = [0]
    make = DeviceIssuer.make

    def make_slowly(self: DeviceIssuer, *arguments: Any) -> IssuedDevice:
        made = make(self, *arguments)
        if left[0]:
            left[0] -= 1
            rotate(authority, overlap=timedelta())
        return made

    monkeypatch.setattr(DeviceIssuer, "make", make_slowly)
    return left


def test_a_rotation_before_the_registration(authority: Authority, rotations: list[int]) -> None:
    """The device is made again, and gets the new keys."""
    for tries in (1, 2):
        rotations[0] = tries
        serial = f"camera-{tries}"
        answer = authority.provisioner.provision_device(request_for(serial))
        check_keys(authority, serial, answer)
        assert rotations == [0]
        token = camera_of(serial, answer).token()
        assert authority.validator.submit(token, Caller(None)).result(30).verdict == "PASS"


def test_the_same_in_an_event_loop(authority: Authority, rotations: list[int]) -> None:
    """As the server provisions."""
    rotations[0] = 2
    answer = asyncio.run(authority.provisioner.provision(request_for("camera")))
    check_keys(authority, "camera", answer)


def test_rotations_without_end(authority: Authority, rotations: list[int]) -> None:
    """The last time it is an error after which the device asks again, and nothing is left over."""
    rotations[0] = MOST_ATTEMPTS
    request = request_for("camera", idempotency_key="key")
    with pytest.raises(KeyTablesRotatedError, match="try again shortly"):
        authority.provisioner.provision_device(request)
    assert rows_of(authority.database, "SELECT device_serial FROM registered_devices") == []
    assert rows_of(authority.database, "SELECT created_at FROM idempotent_responses") == []
    answer = authority.provisioner.provision_device(request)
    check_keys(authority, "camera", answer)


def test_a_repeated_answer_stays_true(authority: Authority, rotations: list[int]) -> None:
    """A device that asks again after a rotation has the keys of its first answer, as registered."""
    request = request_for("camera", idempotency_key="key")
    rotations[0] = 1
    first = authority.provisioner.provision_device(request)
    rotate(authority)
    assert authority.provisioner.provision_device(request) == first
    check_keys(authority, "camera", first)
    assert set(device_of(authority, "camera").table_epochs) == {1}


def test_bulk_provisioning(authority: Authority, settings: Settings, rotations: list[int]) -> None:
    """A chunk whose tables are rotated before its commit is made again as a whole."""
    kept: list[Mapping[int, Provisioned]] = []
    with opened_in_bulk(settings) as bulk:
        rotations[0] = 1
        requests = [request_for(f"camera-{number}") for number in range(5)]
        answers = bulk.provision(requests, kept.append)
        assert len(kept) == 2
        assert answers == list(kept[-1].values())
        for request, answer in zip(requests, answers, strict=True):
            assert isinstance(answer, Provisioned)
            check_keys(authority, request.device_serial, answer)
        rotations[0] = MOST_ATTEMPTS * 5
        more = [request_for(f"camera-{number}") for number in range(4, 9)]
        with pytest.raises(KeyTablesRotatedError):
            bulk.provision(more, kept.append)
    assert rows_of(authority.database, "SELECT count(*) FROM registered_devices") == [(5,)]


def test_both_at_once(authority: Authority, settings: Settings) -> None:
    """Two processes provision while tables are rotated: each device has what is registered."""
    stop = threading.Event()

    def rotate_always() -> int:
        times = 0
        while not stop.is_set():
            with contextlib.suppress(DatabaseUnavailableError):  # SQLite has one writer
                rotate(authority, [times % TABLES], timedelta(hours=1))
                end_overlaps(authority.database, range(TABLES), actor=ACTOR)
                times += 1
            stop.wait(0.1)
        return times

    def provision(at: Authority, serial: str) -> tuple[str, Provisioned | None]:
        try:
            return serial, at.provisioner.provision_device(request_for(serial))
        except (KeyTablesRotatedError, DatabaseUnavailableError):
            return serial, None

    with opened(settings) as other, ThreadPoolExecutor(5) as threads:
        rotating = threads.submit(rotate_always)
        made = list(
            threads.map(
                provision,
                [authority, other] * 20,
                [f"camera-{number}" for number in range(40)],
            )
        )
        stop.set()
        assert rotating.result(60) > 0
    given = {serial: answer for serial, answer in made if answer is not None}
    assert len(given) > 10
    current: dict[tuple[int, int], str] = {}
    for serial, answer in given.items():
        device = device_of(authority, serial)
        assert answer.table_keys is not None
        for place, table_id in enumerate(device.table_assignments):
            # All devices with the same epoch of a table have the same key.
            key = answer.table_keys[str(table_id)]
            assert current.setdefault((table_id, device.table_epochs[place]), key) == key
    assert len(set(current.values())) == len(current)


def test_a_device_of_an_operator(authority: Authority) -> None:
    """A row without epochs has the first keys."""
    answer = authority.provisioner.provision_device(request_for("camera"))
    with authority.database.write() as transaction:
        transaction.exec_driver_sql("UPDATE registered_devices SET table_epochs = NULL")
    assert device_of(authority, "camera").table_epochs == (0, 0, 0)
    check_keys(authority, "camera", answer)
