"""Re-enrolments that are cut off by SIGKILL: a device has its old identity or its new one."""

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx2
import pytest

from birthmark_sma.authority.devices import re_enrolments
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    csr_pem,
    new_key,
    wire,
)
from tests.support.devices.actors import ACTOR
from tests.support.programs.running import Running, new_serial
from tests.support.soak import times

ROUNDS = times(3, 30)
DEVICES = 16


def passes(client: httpx2.Client, camera: Camera) -> bool:
    """True if a token of this camera is PASS."""
    answer = client.post(VALIDATE, json=wire(camera.token()))
    assert answer.status_code == 200
    return bool(answer.json()["validation_result"] == "PASS")


@pytest.mark.soak
def test_no_device_has_two_identities_or_none(start_server: Start) -> None:
    """Threat 30: with the same Idempotency-Key each device gets its one new identity in the end."""
    running = start_server("--access", "open", "--rate-provision", "none")
    with running.client() as client:
        cameras = {
            serial: Camera.provisioned(client, serial)
            for serial in (new_serial() for _ in range(DEVICES))
        }
    for _ in range(ROUNDS):
        for serial in cameras:
            allow(running, serial)
        requests = {
            serial: {
                "device_serial": serial,
                "device_family": "Test",
                "csr": csr_pem(new_key(), serial),
            }
            for serial in cameras
        }
        keys = {serial: {"Idempotency-Key": new_serial("key")} for serial in cameras}
        first = enrol_until_killed(running, requests, keys)
        running = start_server("--access", "open", "--rate-provision", "none")
        with running.client() as client:
            for serial, old in cameras.items():
                answer = client.post(PROVISION, json=requests[serial], headers=keys[serial])
                assert answer.status_code == 200, answer.text
                if serial in first:  # what was answered before the kill is the answer
                    assert answer.json() == first[serial]
                new = Camera.of(serial, answer.json())
                assert not passes(client, old)
                assert passes(client, new)
                cameras[serial] = new
    assert_register_agrees(running, cameras)


def allow(running: Running, serial: str) -> None:
    """Give the operator's permission, in the database, as a command for each takes long."""
    with running.database() as database:
        re_enrolments.allow(database, serial, timedelta(hours=1), ACTOR)


def enrol_until_killed(
    running: Running,
    requests: dict[str, dict[str, str]],
    keys: dict[str, dict[str, str]],
) -> dict[str, dict[str, object]]:
    """Send all requests at once and kill the server meanwhile; return what was answered."""
    answered: dict[str, dict[str, object]] = {}
    start = threading.Barrier(len(requests) + 1)

    def send(serial: str) -> None:
        with running.client() as client:
            start.wait(30)
            try:
                answer = client.post(PROVISION, json=requests[serial], headers=keys[serial])
            except httpx2.HTTPError:
                return
        if answer.status_code == 200:
            answered[serial] = answer.json()

    with ThreadPoolExecutor(len(requests)) as threads:
        sent = [threads.submit(send, serial) for serial in requests]
        start.wait(30)
        time.sleep(random.uniform(0.01, 0.15))
        running.server.process.send_signal(signal.SIGKILL)
        for each in sent:
            each.result(60)
    running.server.process.wait(30)
    running.server.close()
    return answered


def assert_register_agrees(running: Running, cameras: dict[str, Camera]) -> None:
    """Each earlier certificate is revoked, no current one is, and no permission is left."""
    current = running.rows("SELECT device_serial, device_certificate FROM registered_devices")
    assert dict(current) == {
        serial: camera.response["device_certificate"] for serial, camera in cameras.items()
    }
    earlier = running.rows("SELECT certificate_serial FROM earlier_certificates ORDER BY 1")
    revoked = running.rows("SELECT certificate_serial FROM revoked_certificates ORDER BY 1")
    assert earlier == revoked
    assert len(earlier) == ROUNDS * DEVICES
    assert running.count("re_enrolments") == 0
