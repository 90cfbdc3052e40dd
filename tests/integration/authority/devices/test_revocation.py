"""Suspension and revocation: which changes there are, and the list that tells of them."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_publication import publish_due_crl
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import (
    reinstate_device,
    revoke_device,
    suspend_device,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import DeviceStatusError, UnknownDeviceError
from birthmark_sma.pki.crl import REASONS
from birthmark_sma.protocol.verdict import DeviceStatus, Reason
from tests.support.authorities import camera_of, new_camera, opened, openssl, request_for

ACTIVE, SUSPENDED, REVOKED = DeviceStatus


def change(authority: Authority, verb: str, device_serial: str = "camera") -> None:
    """Suspend, reinstate or revoke a device."""
    if verb == "revoke":
        revoke_device(authority.database, device_serial, "key_compromise")
    else:
        {"suspend": suspend_device, "reinstate": reinstate_device}[verb](
            authority.database, device_serial
        )


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

TRANSITIONS: dict[tuple[DeviceStatus, str], DeviceStatus | None] = {
    (ACTIVE, "suspend"): SUSPENDED,
    (ACTIVE, "reinstate"): None,
    (ACTIVE, "revoke"): REVOKED,
    (SUSPENDED, "suspend"): None,
    (SUSPENDED, "reinstate"): ACTIVE,
    (SUSPENDED, "revoke"): REVOKED,
    (REVOKED, "suspend"): None,
    (REVOKED, "reinstate"): None,
    (REVOKED, "revoke"): None,
}
WAYS: dict[DeviceStatus, list[str]] = {
    ACTIVE: [],
    SUSPENDED: ["suspend"],
    REVOKED: ["revoke"],
}


def test_every_transition(authority: Authority) -> None:
    """Threat 6: a revocation is final, and what is refused changes nothing."""
    for number, ((before, verb), after) in enumerate(TRANSITIONS.items()):
        serial = f"camera-{number}"
        new_camera(authority, serial)
        for step in WAYS[before]:
            change(authority, step, serial)
        listed = revocations(authority)
        if after is None:
            with pytest.raises(DeviceStatusError, match=f"{serial} is {before.value}"):
                change(authority, verb, serial)
            assert revocations(authority) == listed
        else:
            change(authority, verb, serial)
            assert len(revocations(authority)) == len(listed) + (verb == "revoke")
        assert status_of(authority, serial) is (after or before)


def test_only_that_device_changes(authority: Authority) -> None:
    """Its neighbours stay as they are."""
    for serial in ("camera", "camera-2", "cameras"):
        new_camera(authority, serial)
    change(authority, "suspend")
    assert status_of(authority, "camera-2") is status_of(authority, "cameras") is ACTIVE


@pytest.mark.parametrize("verb", ["suspend", "reinstate", "revoke"])
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
    """One of them does it, the other is told, and the list has one entry."""
    new_camera(authority, "camera")
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def revoke(program: Authority) -> None:
        start.wait(30)
        try:
            change(program, "revoke")
            outcomes.append("revoked")
        except DeviceStatusError:
            outcomes.append("told")

    with opened(settings) as other:
        threads = [
            threading.Thread(target=revoke, args=[program]) for program in [authority, other] * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(outcomes) == ["revoked", "told", "told", "told"]
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


# --- the list


def test_openssl_reads_the_list(authority: Authority, tmp_path: Path) -> None:
    """Its signature verifies, and with it OpenSSL refuses the revoked device and no other."""
    answers: dict[str, Any] = {
        serial: authority.provisioner.provision_device(request_for(serial))
        for serial in ("good", "bad")
    }
    change(authority, "revoke", "bad")
    crl = crl_of(authority)
    (tmp_path / "crl").write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    chain = answers["good"].certificate_chain
    (tmp_path / "intermediate").write_text(chain[0])
    (tmp_path / "root").write_text(chain[1])
    read = openssl("crl", "-in", tmp_path / "crl", "-CAfile", tmp_path / "intermediate", "-noout")
    assert "verify OK" in read.stdout + read.stderr
    verdicts = {}
    for serial, answer in answers.items():
        (tmp_path / "leaf").write_text(answer.device_certificate)
        verdicts[serial] = openssl(
            "verify", "-x509_strict", "-crl_check", "-CRLfile", tmp_path / "crl",
            "-CAfile", tmp_path / "root", "-untrusted", tmp_path / "intermediate",
            tmp_path / "leaf",
        )  # fmt: skip
    assert verdicts["good"].returncode == 0, verdicts["good"].stderr
    assert "certificate revoked" in verdicts["bad"].stderr
    certificate = x509.load_pem_x509_certificate(answers["bad"].device_certificate.encode())
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert entry is not None
    assert len(list(crl)) == 1


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
    """A verifier needs one before anything was revoked; suspension does not put on it."""
    new_camera(authority, "camera")
    change(authority, "suspend")
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
