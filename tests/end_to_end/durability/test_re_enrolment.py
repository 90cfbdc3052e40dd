"""Re-enrolments that are cut off by SIGKILL: a device has its old identity or its new one."""

from functools import partial

import httpx2
import pytest

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    csr_pem,
    new_key,
    wire,
)
from tests.support.devices.acts import allow_re_enrolment
from tests.support.programs.killed_server import send_until_killed
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
        # In the database, as a command for each takes long.
        with running.database() as database:
            for serial in cameras:
                allow_re_enrolment(database, serial)
        requests = {
            serial: {
                "device_serial": serial,
                "device_family": "Test",
                "csr": csr_pem(new_key(), serial),
            }
            for serial in cameras
        }
        keys = {serial: {"Idempotency-Key": new_serial("key")} for serial in cameras}
        enrolments = {
            serial: partial(enrol, body=requests[serial], key=keys[serial]) for serial in cameras
        }
        first = send_until_killed(running, enrolments, within=0.15)
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


def enrol(client: httpx2.Client, *, body: dict[str, str], key: dict[str, str]) -> httpx2.Response:
    """Send a request to provision."""
    return client.post(PROVISION, json=body, headers=key)


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
