"""Renewals that are cut off by SIGKILL: a device has its old certificate or its new one."""

from functools import partial
from typing import Any

import httpx2
import pytest

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import csr_pem, new_key
from tests.support.cameras.renewal import RENEW, RenewingDevice
from tests.support.programs.killed_server import send_until_killed
from tests.support.programs.running import Running
from tests.support.soak import times

ROUNDS = times(3, 30)
DEVICES = 16
OPTIONS = ("--access", "open", "--rate-renew", "none")


@pytest.mark.soak
def test_no_device_is_stranded_or_has_two_certificates(start_server: Start) -> None:
    """Threat 30: a repetition gets what was answered before the kill; one certificate is valid."""
    running = start_server(*OPTIONS)
    with running.client() as client:
        devices = [RenewingDevice.provisioned(client) for _ in range(DEVICES)]
    for _ in range(ROUNDS):
        keys = [new_key() for _ in devices]
        csrs = [csr_pem(key, each.serial) for key, each in zip(keys, devices, strict=True)]
        renewals = {
            number: partial(renew, body=device.request(csr=csrs[number], supersede=True))
            for number, device in enumerate(devices)
        }
        answered = send_until_killed(running, renewals, within=0.2)
        running = start_server(*OPTIONS)
        with running.client() as client:
            for number, device in enumerate(devices):
                # The device knows nothing but what it wrote down: its certificate and its CSR.
                answer = device.renew(client, csr=csrs[number], supersede=True)
                assert answer.status_code == 200, answer.text
                if number in answered:
                    assert answer.json() == answered[number]
                pem = answer.json()["device_certificate"]
                devices[number] = RenewingDevice(device.serial, keys[number], pem)
        assert_one_is_valid(running, devices)


def renew(client: httpx2.Client, *, body: dict[str, Any]) -> httpx2.Response:
    """Send a request to renew."""
    return client.post(RENEW, json=body)


def assert_one_is_valid(running: Running, devices: list[RenewingDevice]) -> None:
    """Each device has the certificate that it got. All earlier ones are revoked."""
    current = running.rows("SELECT device_serial, certificate_serial FROM registered_devices")
    assert dict(current) == {each.serial: each.certificate_serial for each in devices}
    earlier = running.rows("SELECT certificate_serial FROM earlier_certificates ORDER BY 1")
    revoked = running.rows("SELECT certificate_serial FROM revoked_certificates ORDER BY 1")
    assert earlier == revoked
