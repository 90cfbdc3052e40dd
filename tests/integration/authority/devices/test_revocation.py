"""Suspension and revocation: which changes there are, and the list that tells of them."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_publication import publish_due_crl
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import change_devices
from birthmark_sma.config import Settings
from birthmark_sma.errors import DeviceStatusError, UnknownDeviceError
from birthmark_sma.pki.crl import REASONS
from birthmark_sma.protocol.verdict import DeviceStatus, Reason
from birthmark_sma.storage.engine import Database
from tests.support.authorities import camera_of, new_camera, opened, request_for
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import (
    reinstate_device,
    retire_device,
    revoke_device,
    suspend_device,
)

ACTIVE, SUSPENDED, REVOKED, RETIRED = DeviceStatus


ACTS: dict[str, Callable[[Database, str], str]] = {
    "suspend": suspend_device,
    "reinstate": reinstate_device,
    "revoke": partial(revoke_device, reason="key_compromise"),
    "retire": retire_device,
}


def change(authority: Authority, verb: str, device_serial: str = "camera") -> None:
    """Suspend, reinstate, revoke or retire a device."""
    ACTS[verb](authority.database, device_serial)


def status_of(authority: Authority, device_serial: str = "camera") -> DeviceStatus:
    """Return the status of a device."""
    with authority.database.read() as connection:
        device = device_store.find_device(connection, device_serial)
    assert device is not None
    return device.status


def revocations(authority: Authority) -> list[Revocation]:
    """Return all revocations."""
    with authority.database.read() as connection:
        return ca_store.list_revocations(connection)


def crl_of(authority: Authority) -> x509.CertificateRevocationList:
    """Publish what was revoked, and return the list."""
    publish_due_crl(authority.database, authority.issuer, at_once=True)
    crl = authority.served_crls.newest("intermediate")
    assert crl is not None
    return x509.load_der_x509_crl(crl.der)


# --- transitions

# None: the act is refused. The same status: nothing changes, and no error says so.
TRANSITIONS: dict[DeviceStatus, dict[str, DeviceStatus | None]] = {
    ACTIVE: {"suspend": SUSPENDED, "reinstate": ACTIVE, "revoke": REVOKED, "retire": RETIRED},
    SUSPENDED: {"suspend": SUSPENDED, "reinstate": ACTIVE, "revoke": REVOKED, "retire": RETIRED},
    REVOKED: {"suspend": None, "reinstate": None, "revoke": REVOKED, "retire": None},
    RETIRED: {"suspend": None, "reinstate": None, "revoke": REVOKED, "retire": RETIRED},
}
WAYS: dict[DeviceStatus, list[str]] = {
    ACTIVE: [],
    SUSPENDED: ["suspend"],
    REVOKED: ["revoke"],
    RETIRED: ["retire"],
}
REASON = {
    ACTIVE: None,
    SUSPENDED: "certificate_hold",
    REVOKED: "key_compromise",
    RETIRED: "cessation_of_operation",
}


@pytest.mark.parametrize("before", DeviceStatus)
@pytest.mark.parametrize("verb", ACTS)
def test_every_transition(authority: Authority, before: DeviceStatus, verb: str) -> None:
    """Threat 6: a revocation is final, and what is refused changes nothing."""
    new_camera(authority, "camera")
    for step in WAYS[before]:
        change(authority, step)
    listed, after = revocations(authority), TRANSITIONS[before][verb]
    if after is None:
        with pytest.raises(DeviceStatusError, match=f"camera is {before.value}"):
            change(authority, verb)
        assert revocations(authority) == listed
    else:
        change(authority, verb)
    final = after or before
    assert status_of(authority) is final
    # The list has the reason of the status, and the time of the first act.
    entries = revocations(authority)
    assert [each.revocation_reason for each in entries] == [REASON[final]] * (final is not ACTIVE)
    if listed and entries:
        assert entries[0].revoked_at == listed[0].revoked_at


def test_only_that_device_changes(authority: Authority) -> None:
    """Its neighbours stay as they are."""
    for serial in ("camera", "camera-2", "cameras"):
        new_camera(authority, serial)
    change(authority, "suspend")
    assert status_of(authority, "camera-2") is status_of(authority, "cameras") is ACTIVE


@pytest.mark.parametrize("verb", ACTS)
def test_an_unknown_device_is_told(authority: Authority, verb: str) -> None:
    """The message repeats the serial that was given."""
    with pytest.raises(UnknownDeviceError, match="nobody"):
        change(authority, verb, "nobody")
    assert revocations(authority) == []


@pytest.mark.parametrize("reason", ["", "KEY_COMPROMISE", "certificate_hold", "ca_compromise"])
def test_an_unknown_reason_is_told(authority: Authority, reason: str) -> None:
    """Nothing changes, and the message lists the known ones."""
    new_camera(authority, "camera")
    with pytest.raises(DeviceStatusError, match="key_compromise"):
        revoke_device(authority.database, "camera", reason)
    assert status_of(authority) is ACTIVE


def test_two_who_revoke_at_once(authority: Authority, settings: Settings) -> None:
    """One of them does it, the others change nothing, and the list has one entry."""
    new_camera(authority, "camera")
    outcomes: list[int] = []
    start = threading.Barrier(4)

    def revoke(program: Authority) -> None:
        start.wait(30)
        compromised = states.revoke(ACTOR, "key_compromise")
        outcomes.append(len(change_devices(program.database, ["camera"], compromised).changed))

    with opened(settings) as other:
        threads = [
            threading.Thread(target=revoke, args=[program]) for program in [authority, other] * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(outcomes) == [0, 0, 0, 1]
    assert len(revocations(authority)) == 1


def test_the_verdict_follows(authority: Authority) -> None:
    """Threat 6: the next token of the device already fails, and after a reinstatement passes."""
    camera = new_camera(authority, "camera")

    def reason() -> Reason:
        return authority.validator.submit(camera.token(), Caller(None)).result(30).reason

    assert reason() is Reason.GENUINE
    change(authority, "suspend")
    assert reason() is Reason.DEVICE_SUSPENDED
    change(authority, "reinstate")
    assert reason() is Reason.GENUINE
    change(authority, "suspend")
    change(authority, "revoke")
    assert reason() is Reason.DEVICE_REVOKED


def test_the_token_of_a_retired_device_fails(authority: Authority) -> None:
    """With a reason of its own, which no caller is told."""
    camera = new_camera(authority, "camera")
    change(authority, "retire")
    judged = authority.validator.submit(camera.token(), Caller(None)).result(30)
    assert judged.reason is Reason.DEVICE_RETIRED


# --- the list


def test_every_reason_is_told(authority: Authority) -> None:
    """Each as RFC 5280 has it, with the moment of the revocation."""
    clock = authority.database.clock
    before = clock.now().replace(microsecond=0)
    serials = {}
    for reason in REASONS:
        answer = authority.provisioner.provision_device(request_for(f"camera-{reason}"))
        certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
        serials[reason] = certificate.serial_number
        camera_of(f"camera-{reason}", answer)
        revoke_device(authority.database, f"camera-{reason}", reason)
    crl = crl_of(authority)
    for reason, serial in serials.items():
        entry = crl.get_revoked_certificate_by_serial_number(serial)
        assert entry is not None
        assert before <= entry.revocation_date_utc <= clock.now()
        told = [extension.value for extension in entry.extensions]
        if reason == "unspecified":
            assert told == []
        else:
            assert told == [x509.CRLReason(REASONS[reason])]


def test_an_empty_list_is_a_list(authority: Authority) -> None:
    """A verifier needs one before anything was revoked, and after the last suspension."""
    new_camera(authority, "camera")
    change(authority, "suspend")
    change(authority, "reinstate")
    crl = crl_of(authority)
    assert list(crl) == []
    public_key: Any = authority.issuer.certificate.public_key()
    assert crl.is_signature_valid(public_key)
    assert crl.next_update_utc is not None
    assert crl.next_update_utc - datetime.now(UTC) > timedelta(hours=12)


def test_numbers_of_lists_grow(authority: Authority, settings: Settings) -> None:
    """RFC 5280, section 5.2.3, over programs too."""
    numbers = []
    with opened(settings) as other:
        for program in [authority, other] * 3:
            numbers.append(
                crl_of(program).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            )
            threading.Event().wait(0.002)
    assert numbers == sorted(set(numbers))
    assert max(number.bit_length() for number in numbers) <= 159
