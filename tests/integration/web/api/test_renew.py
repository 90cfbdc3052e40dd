"""POST /api/v1/devices/renew, on both kinds of database."""

import httpx2

from tests.support.cameras.renewal import RenewingDevice


def test_a_device_gets_a_certificate_for_a_new_key(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    renewed = device.renewed(client)
    assert renewed.certificate != device.certificate
    assert renewed.loaded.public_key() == renewed.key.public_key()
    assert renewed.loaded.subject == device.loaded.subject
