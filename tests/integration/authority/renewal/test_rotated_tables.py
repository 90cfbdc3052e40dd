"""A renewal gives the newest keys of rotated tables, and the register says so."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from jwcrypto import jwe, jwk

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.provisioning.issuance import DeviceIssuer
from birthmark_sma.authority.provisioning.registration import MOST_ATTEMPTS
from birthmark_sma.authority.renewal.registration import Renewed
from birthmark_sma.errors import KeyTablesRotatedError
from tests.support.cameras.camera import new_key
from tests.support.cameras.renewal import RenewingDevice
from tests.support.cameras.renewed import new_device, renew
from tests.support.cameras.table_epochs import rotate


@pytest.fixture
def device(authority: Authority) -> RenewingDevice:
    """Return a provisioned device."""
    return new_device(authority, "camera")


def keys_in(renewed: Renewed, recipient: Any) -> Mapping[str, str]:
    """Decrypt the table keys of a response with an independent library."""
    opened = jwe.JWE()
    opened.allowed_algs = ["ECDH-ES+A256KW", "A256GCM"]
    private = recipient.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    opened.deserialize(renewed.sealed_secrets, jwk.JWK.from_pem(private))
    keys: Mapping[str, str] = json.loads(opened.payload)["table_keys"]
    return keys


def registered(authority: Authority) -> tuple[tuple[int, ...], Mapping[str, str]]:
    """Return the registered epochs of the device, and the keys of these epochs."""
    with authority.database.read() as connection:
        device = device_store.find_device(connection, "camera")
        tables = authority.table_cache.poll(connection)
    assert device is not None
    keys = {
        str(table_id): key.master_key.hex()
        for table_id, epoch in zip(device.table_assignments, device.table_epochs, strict=True)
        for key in tables.live_keys(table_id)
        if key.epoch == epoch
    }
    return device.table_epochs, keys


def test_a_renewal_gives_the_newest_keys(authority: Authority, device: RenewingDevice) -> None:
    """If the device asks for keys; one that does not keeps the epochs of those that it has."""
    rotate(authority)
    renew(authority, device.request())
    assert registered(authority)[0] == (0, 0, 0)
    recipient = new_key()
    renewed = renew(authority, device.request(recipient=recipient))
    epochs, keys = registered(authority)
    assert epochs == (1, 1, 1)
    assert keys_in(renewed, recipient) == keys


def test_a_repetition_after_a_rotation(authority: Authority, device: RenewingDevice) -> None:
    """The same certificate, with the keys of today, which the register then names."""
    recipient = new_key()
    body = device.request(recipient=recipient)
    first = renew(authority, body)
    assert registered(authority)[0] == (0, 0, 0)
    rotate(authority)
    second = renew(authority, device.request(csr=body["csr"], recipient=recipient))
    assert second.is_repetition
    assert second.device_certificate == first.device_certificate
    epochs, keys = registered(authority)
    assert epochs == (1, 1, 1)
    assert keys_in(second, recipient) == keys != keys_in(first, recipient)


@pytest.mark.parametrize("times", [1, MOST_ATTEMPTS])
def test_a_rotation_before_the_registration(
    authority: Authority, device: RenewingDevice, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The keys are given again; after the last attempt it is an error, and nothing has changed."""
    seal, left = DeviceIssuer.seal, [times]

    def seal_slowly(self: DeviceIssuer, *arguments: Any) -> str:
        sealed = seal(self, *arguments)
        if left[0]:
            left[0] -= 1
            rotate(authority, overlap=timedelta())
        return sealed

    monkeypatch.setattr(DeviceIssuer, "seal", seal_slowly)
    recipient = new_key()
    body = device.request(recipient=recipient, supersede=True)
    if times < MOST_ATTEMPTS:
        renewed = renew(authority, body)
        assert keys_in(renewed, recipient) == registered(authority)[1]
        return
    with pytest.raises(KeyTablesRotatedError):
        renew(authority, body)
    with authority.database.read() as connection:
        [found] = device_search.search(connection, DeviceFilter(), limit=2)
    assert found.device_certificate == device.certificate
