"""POST /api/v1/devices/renew, on both kinds of database."""

import json
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwcrypto import jwe, jwk

from birthmark_sma.authority.devices import re_enrolments
from birthmark_sma.protocol.bundle import format_time
from tests.support.authorities import execute
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    csr_pem,
    new_key,
    provision_body,
    public_pem,
    wire,
)
from tests.support.cameras.renewal import RENEW, RenewingDevice
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device
from tests.support.problems import assert_problem, fields_of
from tests.support.programs.running import Running, new_serial

WRONG_TIMES = [timedelta(minutes=5, seconds=5), timedelta(days=400)]


def refusal(response: httpx2.Response, status: int, problem: str) -> dict[str, Any]:
    """Assert that a renewal was refused with this problem; return the document."""
    document = assert_problem(response, status)
    assert document["type"] == f"urn:birthmark:problem:{problem}"
    return document


def open_secrets(answer: dict[str, Any], recipient: Any) -> dict[str, Any]:
    """Decrypt the sealed secrets of an answer with an independent library."""
    private = recipient.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    opened = jwe.JWE()
    opened.allowed_algs = ["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"]
    opened.deserialize(answer["sealed_secrets"], jwk.JWK.from_pem(private))
    secrets: dict[str, Any] = json.loads(opened.payload)
    return secrets


def revocations(running: Running, device: RenewingDevice) -> dict[str, str]:
    """Return the revoked certificates of a device, with the reasons."""
    return dict(
        running.rows(
            "SELECT certificate_serial, revocation_reason FROM revoked_certificates"
            " WHERE device_serial = ?",
            device.serial,
        )
    )


def current(running: Running, device: RenewingDevice) -> str:
    """Return the serial number of the device's certificate in the register."""
    [[serial]] = running.rows(
        "SELECT certificate_serial FROM registered_devices WHERE device_serial = ?", device.serial
    )
    return str(serial)


def change(running: Running, statement: str, **parameters: object) -> None:
    """Run a statement behind the server's back."""
    with running.database() as database:
        execute(database, statement, **parameters)


def expire(running: Running, device: RenewingDevice, ends: datetime) -> None:
    """Let the current certificate of a device end at a time, as far as the register knows."""
    at = ends.astimezone(UTC).isoformat(" ", "microseconds")
    change(
        running,
        "UPDATE registered_devices SET certificate_expires_at = :at WHERE device_serial = :serial",
        at=at,
        serial=device.serial,
    )


# --- what a device gets


def test_a_device_gets_a_certificate_for_a_new_key(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    key = new_key()
    response = device.renew(client, key=key)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    assert list(answer) == [
        "device_certificate",
        "certificate_chain",
        "table_assignments",
        "renewed_at",
    ]
    certificate, intermediate, root = (
        x509.load_pem_x509_certificate(pem.encode())
        for pem in (answer["device_certificate"], *answer["certificate_chain"])
    )
    certificate.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject == device.loaded.subject
    assert certificate.serial_number != device.loaded.serial_number
    assert certificate.not_valid_after_utc >= device.loaded.not_valid_after_utc


def test_the_old_certificate_stays_valid_unless_the_device_asks(
    client: httpx2.Client, running: Running
) -> None:
    """The register knows both, and the old one is on no revocation list."""
    device = RenewingDevice.provisioned(client)
    renewed = device.renewed(client)
    assert current(running, device) == renewed.certificate_serial
    assert revocations(running, device) == {}
    [earlier] = running.rows(
        "SELECT certificate_serial, replaced_by, exchanged_for FROM earlier_certificates"
        " WHERE device_serial = ?",
        device.serial,
    )
    assert earlier == (device.certificate_serial, "renewal", renewed.certificate_serial)


def test_supersede_leaves_one_certificate(client: httpx2.Client, running: Running) -> None:
    """All others are revoked in the same transaction, also those of renewals before."""
    first = RenewingDevice.provisioned(client)
    second = first.renewed(client)
    third = second.renewed(client, supersede=True)
    assert revocations(running, first) == {
        first.certificate_serial: "superseded",
        second.certificate_serial: "superseded",
    }
    assert current(running, first) == third.certificate_serial
    for old in (first, second):
        refusal(old.renew(client), 403, "renewal-refused")


def test_the_device_keeps_its_nuc_hash_and_its_tables(client: httpx2.Client) -> None:
    """Tokens pass before and after, also those of a queue."""
    serial, key = new_serial(), new_key()
    camera = Camera.provisioned(client, serial, device_public_key=public_pem(key))
    device = RenewingDevice(serial, key, camera.response["device_certificate"])
    queued = camera.token()
    answer = device.renew(client, supersede=True).json()
    assert answer["table_assignments"] == camera.response["table_assignments"]
    for token in (queued, camera.token()):
        assert client.post(VALIDATE, json=wire(token)).json()["validation_result"] == "PASS"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        x25519.X25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "X25519", "RSA"],
)
def test_table_keys_come_sealed(client: httpx2.Client, make: Callable[[], Any]) -> None:
    """Without the NUC hash, which the authority does not know."""
    serial, key, recipient = new_serial(), new_key(), make()
    camera = Camera.provisioned(client, serial, device_public_key=public_pem(key))
    device = RenewingDevice(serial, key, camera.response["device_certificate"])
    answer = device.renew(client, recipient=recipient).json()
    certificate = x509.load_pem_x509_certificate(answer["device_certificate"].encode())
    assert open_secrets(answer, recipient) == {
        "device_serial": serial,
        "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "table_keys": camera.response["table_keys"],
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
def test_each_kind_of_key_proves(
    client: httpx2.Client, running: Running, make: Callable[[], Any]
) -> None:
    """The algorithms are those of bundles."""
    device = RenewingDevice.provisioned(client, make())
    device.renewed(client)
    assert revocations(running, device) == {}


def test_the_key_may_stay_the_same(client: httpx2.Client, running: Running) -> None:
    """Three times: earlier certificates with the same key are no obstacle, superseded or not."""
    device = RenewingDevice.provisioned(client)
    for supersede in (False, True, False):
        device = device.renewed(client, key=device.key, supersede=supersede)
    assert len(revocations(running, device)) == 2


def test_an_earlier_certificate_that_is_still_valid_renews(
    client: httpx2.Client, running: Running
) -> None:
    first = RenewingDevice.provisioned(client)
    second = first.renewed(client)
    third = first.renewed(client)
    assert current(running, first) == third.certificate_serial
    rows = running.rows(
        "SELECT certificate_serial, exchanged_for FROM earlier_certificates"
        " WHERE device_serial = ?",
        first.serial,
    )
    assert dict(rows) == {
        first.certificate_serial: third.certificate_serial,
        second.certificate_serial: None,
    }


# --- a lost answer


def test_the_same_csr_gets_the_same_certificate(client: httpx2.Client, running: Running) -> None:
    """Threat 8: with a new time and signature; the secrets are sealed anew."""
    device = RenewingDevice.provisioned(client)
    key, recipient = new_key(), new_key()
    body = device.request(key=key, recipient=recipient)
    first = client.post(RENEW, json=body).json()
    again = device.request(csr=body["csr"], recipient=recipient)
    second = client.post(RENEW, json=again).json()
    assert first.pop("sealed_secrets") != second["sealed_secrets"]
    opened = open_secrets(second, recipient)
    second.pop("sealed_secrets")
    assert first == second
    certificate = x509.load_pem_x509_certificate(first["device_certificate"].encode())
    assert opened["certificate_sha256"] == certificate.fingerprint(hashes.SHA256()).hex()
    [[earlier]] = running.rows(
        "SELECT count(*) FROM earlier_certificates WHERE device_serial = ?", device.serial
    )
    assert earlier == 1


def test_a_repetition_after_supersede_gets_the_answer(
    client: httpx2.Client, running: Running
) -> None:
    """The presented certificate has been revoked by this very renewal."""
    device = RenewingDevice.provisioned(client)
    body = device.request(supersede=True)
    first = client.post(RENEW, json=body).json()
    assert list(revocations(running, device)) == [device.certificate_serial]
    again = device.renew(client, csr=body["csr"], supersede=True)
    assert again.json() == first
    # But not with another CSR.
    refusal(device.renew(client), 403, "renewal-refused")


def test_supersede_in_a_repetition_is_carried_out(client: httpx2.Client, running: Running) -> None:
    device = RenewingDevice.provisioned(client)
    body = device.request()
    first = client.post(RENEW, json=body).json()
    assert revocations(running, device) == {}
    again = device.renew(client, csr=body["csr"], supersede=True)
    assert again.json() == first
    assert revocations(running, device) == {device.certificate_serial: "superseded"}


def test_a_repetition_after_the_certificate_ended(client: httpx2.Client, running: Running) -> None:
    """Within the grace period, whenever it comes."""
    device = RenewingDevice.provisioned(client)
    body = device.request()
    first = client.post(RENEW, json=body).json()
    for age, accepted in ((timedelta(days=89), True), (timedelta(days=91), False)):
        change(
            running,
            "UPDATE earlier_certificates SET certificate_expires_at = :at"
            " WHERE certificate_serial = :serial",
            at=(datetime.now(UTC) - age).isoformat(" ", "microseconds"),
            serial=device.certificate_serial,
        )
        again = device.renew(client, csr=body["csr"])
        if accepted:
            assert again.json() == first
        else:
            refusal(again, 403, "renewal-refused")


def test_a_replayed_request_does_no_harm(client: httpx2.Client, running: Running) -> None:
    """Threat 27: byte for byte, within 5 minutes, by somebody else: nothing changes."""
    device = RenewingDevice.provisioned(client)
    body = device.request(supersede=True)
    answers = [client.post(RENEW, json=body).json() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    certificate = x509.load_pem_x509_certificate(answers[0]["device_certificate"].encode())
    assert current(running, device) == f"{certificate.serial_number:x}"


def test_a_repetition_after_the_next_renewal_is_a_renewal(
    client: httpx2.Client, running: Running
) -> None:
    """The certificate that it got is not the current one any more."""
    device = RenewingDevice.provisioned(client)
    body = device.request()
    first = client.post(RENEW, json=body).json()
    device.renewed(client)
    again = device.renew(client, csr=body["csr"]).json()
    assert again["device_certificate"] != first["device_certificate"]
    newest = x509.load_pem_x509_certificate(again["device_certificate"].encode())
    assert current(running, device) == f"{newest.serial_number:x}"


# --- who may renew


def test_a_foreign_certificate_proves_nothing(client: httpx2.Client) -> None:
    """Neither with the signature of the other device, nor with the own one."""
    device, other = RenewingDevice.provisioned(client), RenewingDevice.provisioned(client)
    refusal(device.renew(client, sign_with=other.key), 403, "renewal-refused")
    refusal(device.renew(client, device_certificate=other.certificate), 403, "renewal-refused")


def test_an_unknown_certificate(client: httpx2.Client) -> None:
    """A certificate of the right serial number, made by somebody with another key."""
    device = RenewingDevice.provisioned(client)
    key = new_key()
    forged = (
        x509.CertificateBuilder()
        .subject_name(device.loaded.subject)
        .issuer_name(device.loaded.issuer)
        .public_key(key.public_key())
        .serial_number(device.loaded.serial_number)
        .not_valid_before(device.loaded.not_valid_before_utc)
        .not_valid_after(device.loaded.not_valid_after_utc)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )
    impostor = RenewingDevice(device.serial, key, forged)
    detail = refusal(impostor.renew(client), 403, "renewal-refused")["detail"]
    assert "not registered" in detail


def test_a_certificate_of_another_version(client: httpx2.Client) -> None:
    """X.509 knows the versions 1 to 3."""
    device = RenewingDevice.provisioned(client)
    der = device.loaded.public_bytes(Encoding.DER)
    version_3, version_8 = bytes.fromhex("a003020102"), bytes.fromhex("a003020107")
    text = b64encode(der.replace(version_3, version_8, 1)).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
    refusal(device.renew(client, device_certificate=pem), 422, "certificate-refused")


@pytest.mark.parametrize("field", ["supersede", "requested_at", "csr", "recipient"])
def test_a_relay_changes_nothing(client: httpx2.Client, running: Running, field: str) -> None:
    """Threat 41: a flipped choice, another time, another CSR, another recipient key."""
    device = RenewingDevice.provisioned(client)
    now = datetime.now(UTC)
    changes: dict[str, dict[str, Any]] = {
        "supersede": {"supersede": True},
        "requested_at": {"requested_at": format_time(now + timedelta(seconds=1))},
        "csr": {"csr": csr_pem(new_key(), device.serial)},
        "recipient": {"key_encryption_public_key": public_pem(new_key())},
    }
    body = device.request(recipient=new_key(), at=now) | changes[field]
    refusal(client.post(RENEW, json=body), 403, "renewal-refused")
    assert current(running, device) == device.certificate_serial


def test_a_signed_swap_of_the_recipient_key(client: httpx2.Client) -> None:
    """The CSR must name the recipient key, as at provisioning."""
    device = RenewingDevice.provisioned(client)
    document = refusal(
        device.renew(client, recipient=new_key(), csr=csr_pem(new_key(), device.serial)),
        422,
        "csr-refused",
    )
    assert "recipient key" in document["detail"]


def test_a_csr_of_another_device(client: httpx2.Client) -> None:
    """Threat 41: it names another serial; or its key belongs to another device."""
    device, other = RenewingDevice.provisioned(client), RenewingDevice.provisioned(client)
    stranger = csr_pem(new_key(), other.serial)
    refusal(device.renew(client, csr=stranger), 422, "csr-refused")
    refusal(device.renew(client, key=other.key), 409, "public-key-in-use")
    renewed = other.renewed(client)
    refusal(device.renew(client, key=other.key), 409, "public-key-in-use")
    refusal(device.renew(client, key=renewed.key), 409, "public-key-in-use")


def test_a_recipient_key_that_signs(client: httpx2.Client) -> None:
    """Threat 39: one key for two purposes; its own, or that of another device."""
    device, other = RenewingDevice.provisioned(client), RenewingDevice.provisioned(client)
    for recipient in (other.key, device.key):
        refusal(device.renew(client, recipient=recipient), 422, "key-refused")


def test_a_superseded_key_does_not_come_back(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    renewed = device.renewed(client, supersede=True)
    document = refusal(renewed.renew(client, key=device.key), 422, "key-refused")
    assert "revoked" in document["detail"]


def test_weak_and_foreign_keys(client: httpx2.Client) -> None:
    """Threat 39: the rules of provisioning, once the proof was verified."""
    device = RenewingDevice.provisioned(client)
    curve = ec.generate_private_key(ec.SECP521R1())
    refusal(device.renew(client, key=curve), 422, "key-refused")


def test_a_suspended_device_waits_and_a_revoked_one_is_over(
    client: httpx2.Client, running: Running
) -> None:
    """The state is told only to the holder of the key. A repetition is refused as well."""
    device = RenewingDevice.provisioned(client)
    body = device.request()
    assert client.post(RENEW, json=body).status_code == 200
    with running.database() as database:
        suspend_device(database, device.serial)
        refusal(device.renew(client), 403, "device-not-active")
        refusal(device.renew(client, csr=body["csr"]), 403, "device-not-active")
        refusal(device.renew(client, sign_with=new_key()), 403, "renewal-refused")
        reinstate_device(database, device.serial)
        device = device.renewed(client)
        revoke_device(database, device.serial, "key_compromise")
    document = refusal(device.renew(client), 403, "device-not-active")
    assert "revoked" in document["detail"]


def test_a_certificate_that_an_operator_revoked(client: httpx2.Client, running: Running) -> None:
    """The device is active, but its certificate is on the list."""
    device = RenewingDevice.provisioned(client)
    change(
        running,
        "INSERT INTO revoked_certificates"
        " (certificate_serial, device_serial, revoked_at, revocation_reason)"
        " VALUES (:certificate, :serial, :at, 'key_compromise')",
        certificate=device.certificate_serial,
        serial=device.serial,
        at=datetime.now(UTC).isoformat(" ", "microseconds"),
    )
    document = refusal(device.renew(client), 403, "renewal-refused")
    assert "key_compromise" in document["detail"]


@pytest.mark.parametrize(
    ("age", "accepted"),
    [
        (timedelta(days=-1), True),
        (timedelta(0), True),
        (timedelta(days=90) - timedelta(seconds=30), True),
        (timedelta(days=90), False),
        (timedelta(days=900), False),
    ],
)
def test_the_grace_period(
    client: httpx2.Client, running: Running, age: timedelta, accepted: bool
) -> None:
    """90 days after the end of the certificate, by the database's clock."""
    device = RenewingDevice.provisioned(client)
    expire(running, device, datetime.now(UTC) - age)
    response = device.renew(client)
    if accepted:
        assert response.status_code == 200, response.text
    else:
        document = refusal(response, 403, "renewal-refused")
        assert "re-enrol" in document["detail"]


def test_a_superseded_certificate_has_no_grace_period(
    client: httpx2.Client, running: Running
) -> None:
    """A certificate that has ended is superseded like any other: nobody renews with it."""
    device = RenewingDevice.provisioned(client)
    expire(running, device, datetime.now(UTC) - timedelta(days=1))
    renewed = device.renewed(client, supersede=True)
    document = refusal(device.renew(client), 403, "renewal-refused")
    assert "superseded" in document["detail"]
    assert current(running, device) == renewed.certificate_serial
    assert revocations(running, device) == {device.certificate_serial: "superseded"}


def test_a_lost_key_has_no_grace_period(client: httpx2.Client, running: Running) -> None:
    """After a re-enrolment, a key whose certificate has ended renews nothing either."""
    device = RenewingDevice.provisioned(client)
    expire(running, device, datetime.now(UTC) - timedelta(days=1))
    with running.database() as database:
        re_enrolments.allow(database, device.serial, timedelta(days=1), ACTOR)
    body = provision_body(device.serial, csr=csr_pem(new_key(), device.serial))
    del body["device_public_key"]
    response = client.post(PROVISION, json=body)
    assert response.status_code == 200, response.text
    refusal(device.renew(client), 403, "renewal-refused")


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("wrong", WRONG_TIMES)
def test_a_wrong_clock(client: httpx2.Client, wrong: timedelta, ahead: bool) -> None:
    """Threat 50: the device is told the difference and the server's time."""
    device = RenewingDevice.provisioned(client)
    at = datetime.now(UTC) + (wrong if ahead else -wrong)
    detail = refusal(device.renew(client, at=at), 403, "renewal-time-refused")["detail"]
    assert ("ahead of" if ahead else "behind") in detail
    assert f"{datetime.now(UTC):%Y-%m-%dT%H:}" in detail
    # Somebody without the key is not told.
    refusal(device.renew(client, at=at, sign_with=new_key()), 403, "renewal-refused")


def test_a_clock_that_is_a_little_wrong(client: httpx2.Client) -> None:
    device = RenewingDevice.provisioned(client)
    for wrong in (timedelta(minutes=4, seconds=50), -timedelta(minutes=4, seconds=50)):
        device = device.renewed(client, at=datetime.now(UTC) + wrong)


# --- malformed requests


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"device_certificate": None}, "device_certificate"),
        ({"csr": None}, "csr"),
        ({"requested_at": None}, "requested_at"),
        ({"signature": None}, "signature"),
        ({"signature": "AAAA="}, "signature"),
        ({"signature": "AAB="}, "signature"),
        ({"signature": "A" * 688}, "signature"),
        ({"signature": ""}, "signature"),
        ({"supersede": 1}, "supersede"),
        ({"supersede": "false"}, "supersede"),
        ({"requested_at": "2026-11-30T12:00:00Z"}, "requested_at"),
        ({"requested_at": "2026-11-30T12:00:00.000000+00:00"}, "requested_at"),
        ({"requested_at": "2026-02-30T12:00:00.000000Z"}, "requested_at"),
        ({"requested_at": "\u0662026-11-30T12:00:00.000000Z"}, "requested_at"),
        ({"device_serial": "other"}, "device_serial"),
        ({"csr": "x" * 8_193}, "csr"),
    ],
)
def test_malformed_fields(client: httpx2.Client, changes: dict[str, Any], field: str) -> None:
    body = RenewingDevice.provisioned(client).request()
    body = {name: value for name, value in (body | changes).items() if value is not None}
    document = refusal(client.post(RENEW, json=body), 422, "invalid-request")
    assert fields_of(document) == {field}


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("device_certificate", "certificate-refused"),
        ("csr", "csr-refused"),
        ("key_encryption_public_key", "key-refused"),
    ],
)
def test_texts_that_are_no_pem(client: httpx2.Client, field: str, problem: str) -> None:
    """Threat 21: damaged, twice, of another kind, with characters that no encoding has."""
    device = RenewingDevice.provisioned(client)
    body = device.request(recipient=new_key())
    wrong = [
        "",
        "no PEM",
        body[field].replace("M", "\u0000"),
        body[field] + body[field],
        public_pem(new_key()) if field != "key_encryption_public_key" else device.certificate,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ]
    for text in wrong:
        response = client.post(RENEW, json=body | {field: text})
        # What can be decoded is covered by the signature, which does not verify.
        assert response.status_code in {403, 422}, (text, response.text)
        if response.status_code == 422 and text:
            assert assert_problem(response, 422)["type"].endswith((problem, "invalid-request"))


def test_a_certificate_with_trailing_bytes_is_another_one(client: httpx2.Client) -> None:
    """Its digest is not that which the device signed."""
    device = RenewingDevice.provisioned(client)
    der = device.loaded.public_bytes(Encoding.DER) + b"\0"
    pem = f"-----BEGIN CERTIFICATE-----\n{b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
    response = device.renew(client, device_certificate=pem)
    assert response.status_code in {403, 422}


def test_bodies_are_bounded(client: httpx2.Client) -> None:
    """Threat 34: nobody is authenticated before the body is read."""
    assert_problem(client.post(RENEW, content=b" " * 32_769, headers=JSON), 413)
    assert_problem(client.post(RENEW, content=b"{}", headers={"Content-Type": "text/plain"}), 415)


JSON = {"Content-Type": "application/json"}


def test_a_shown_credential_is_checked(client: httpx2.Client) -> None:
    """Threat 33, although the path needs none."""
    device = RenewingDevice.provisioned(client)
    wrong = {"Authorization": "Bearer sma_wrong"}
    response = client.post(RENEW, json=device.request(), headers=wrong)
    assert response.status_code == 401


# --- two at once


def test_many_renewals_at_once(client: httpx2.Client, running: Running) -> None:
    """Different CSRs from one certificate: each ends with a definite answer, and one is current."""
    device = RenewingDevice.provisioned(client)
    bodies = [device.request() for _ in range(8)]
    answers = in_parallel(client, bodies)
    assert {answer.status_code for answer in answers} == {200}
    issued = [answer.json()["device_certificate"] for answer in answers]
    assert len(set(issued)) == 8
    assert device_count(running, device) == 8  # earlier certificates
    serials = {f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}" for pem in issued}
    assert current(running, device) in serials


def test_one_stays_valid_where_one_was_asked_for(client: httpx2.Client, running: Running) -> None:
    """With `supersede` the first one wins. The others present a certificate that is revoked."""
    device = RenewingDevice.provisioned(client)
    answers = in_parallel(client, [device.request(supersede=True) for _ in range(8)])
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] + 7 * [403]
    [won] = [answer.json() for answer in answers if answer.status_code == 200]
    certificate = x509.load_pem_x509_certificate(won["device_certificate"].encode())
    assert current(running, device) == f"{certificate.serial_number:x}"
    assert revocations(running, device) == {device.certificate_serial: "superseded"}


def test_one_request_many_times_at_once(client: httpx2.Client, running: Running) -> None:
    """One certificate is registered, and each answer has it."""
    device = RenewingDevice.provisioned(client)
    recipient = new_key()
    body = device.request(supersede=True, recipient=recipient)
    answers = [answer.json() for answer in in_parallel(client, [body] * 8)]
    assert len({answer["device_certificate"] for answer in answers}) == 1
    digests = {open_secrets(answer, recipient)["certificate_sha256"] for answer in answers}
    certificate = x509.load_pem_x509_certificate(answers[0]["device_certificate"].encode())
    assert digests == {certificate.fingerprint(hashes.SHA256()).hex()}
    assert device_count(running, device) == 1


def test_one_key_for_two_devices_at_once(client: httpx2.Client, running: Running) -> None:
    """Threat 4: one of them gets the certificate."""
    for _ in range(5):
        key = new_key()
        devices = [RenewingDevice.provisioned(client) for _ in range(2)]
        answers = in_parallel(client, [each.request(key=key) for each in devices])
        assert sorted(answer.status_code for answer in answers) == [200, 409]


def test_a_renewal_and_a_revocation_at_once(client: httpx2.Client, running: Running) -> None:
    """Whichever comes first: all certificates of the device are revoked in the end."""
    for _ in range(5):
        device = RenewingDevice.provisioned(client)
        body = device.request()
        with running.database() as database, ThreadPoolExecutor(2) as threads:
            revoking = threads.submit(revoke_device, database, device.serial, "unspecified")
            renewing = threads.submit(client.post, RENEW, json=body)
            revoking.result(60)
            assert renewing.result(60).status_code in {200, 403}
        earlier = running.rows(
            "SELECT certificate_serial FROM earlier_certificates WHERE device_serial = ?",
            device.serial,
        )
        all_of_them = {current(running, device), *(str(row[0]) for row in earlier)}
        assert revocations(running, device).keys() == all_of_them


def in_parallel(client: httpx2.Client, bodies: list[dict[str, Any]]) -> list[httpx2.Response]:
    """Send renewals at the same time; return the responses in the order of the bodies."""
    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(lambda body: client.post(RENEW, json=body, timeout=60), bodies))


def device_count(running: Running, device: RenewingDevice) -> int:
    """Return the number of earlier certificates of a device."""
    [[count]] = running.rows(
        "SELECT count(*) FROM earlier_certificates WHERE device_serial = ?", device.serial
    )
    return int(count)
