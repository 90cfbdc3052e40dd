"""Re-enrolment: who may replace a device's certificate, and what is left if it is refused."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.keys import revoke_key
from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.authority import Authority, opened_in_bulk
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import certificates_store, re_enrolments, uniqueness
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.certificates_store import Revocation
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.provisioning.issuance import IssuedDevice
from birthmark_sma.authority.provisioning.service import Provisioned, ProvisioningRequest
from birthmark_sma.authority.server_metrics import OUTCOMES
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BirthmarkError,
    CsrRefusedError,
    DeviceAlreadyProvisionedError,
    DeviceDescriptionRefusedError,
    EnrolmentRefusedError,
    IdempotencyKeyReusedError,
    KeyEncryptionKeyRefusedError,
    KeyRefusedError,
    NucHashInUseError,
    PublicKeyInUseError,
    ReEnrolmentRefusedError,
)
from birthmark_sma.pki.keys.key_policy import fingerprint
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import Verdict
from tests.support.access_keys import issue
from tests.support.authorities import camera_of, execute, new_camera, opened, request_for, rows_of
from tests.support.cameras.camera import csr_pem, new_key, public_pem, sealed_fields
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device
from tests.support.devices.batches import validation_under_way

DAY = timedelta(days=1)
NOBODY = Caller(None)


def allow(authority: Authority, name: str, period: timedelta = DAY) -> None:
    """Give an operator's permission."""
    re_enrolments.allow(authority.database, name, period, ACTOR)


def again(device_serial: str, key: Any = None, **fields: Any) -> ProvisioningRequest:
    """Return a request with a CSR, as a camera that lost its state sends it."""
    csr = csr_pem(key or new_key(), device_serial)
    return request_for(device_serial, **({"csr": csr} | fields))


def re_enrol(authority: Authority, request: ProvisioningRequest) -> Provisioned:
    """Send a request."""
    return authority.provisioner.provision_device(request)


def refusal(authority: Authority, request: ProvisioningRequest) -> BirthmarkError:
    """Return the error of a refused request, which must leave no change in the database."""
    before = everything(authority)
    with pytest.raises(BirthmarkError) as caught:
        re_enrol(authority, request)
    assert everything(authority) == before
    return caught.value


def everything(authority: Authority) -> list[list[tuple[Any, ...]]]:
    """Return the rows that a re-enrolment changes."""
    return [
        rows_of(authority.database, f"SELECT * FROM {table} ORDER BY {key}")
        for table, key in (
            ("registered_devices", "device_serial"),
            ("earlier_certificates", "certificate_serial"),
            ("revoked_certificates", "certificate_serial"),
            ("re_enrolments", "device_serial"),
            ("idempotent_responses", "idempotency_key"),
        )
    ] + [rows_of(authority.database, "SELECT key_id, uses FROM access_keys ORDER BY key_id")]


def find(authority: Authority, device_serial: str) -> Device:
    """Return a device of the register."""
    with authority.database.read() as connection:
        device = device_store.find_device(connection, device_serial)
    assert device is not None
    return device


def verdict(authority: Authority, token: CameraToken) -> Verdict:
    """Validate a token."""
    return authority.validator.submit(token, NOBODY).result(30).verdict


def key_for(authority: Authority, name: str = "enrolment", **terms: Any) -> AccessKey:
    """Create an enrolment key with the right to re-enrol, unless `terms` say otherwise."""
    return issue(authority.database, name, "provision", **({"may_re_enrol": True} | terms)).key


# --- what a re-enrolment does


def test_a_device_that_lost_its_key_gets_a_new_certificate(authority: Authority) -> None:
    """The old identity ends with the commit in which the new one begins."""
    old_camera = new_camera(authority, "camera-1", app_version="1.0")
    before = find(authority, "camera-1")
    old_token = old_camera.token()
    assert verdict(authority, old_token) is Verdict.PASS
    allow(authority, "CAMERA-1")
    assert verdict(authority, old_camera.token()) is Verdict.PASS  # until the device comes

    answer = re_enrol(authority, again("camera-1", app_version="2.0"))

    device = find(authority, "camera-1")
    assert device.device_certificate == answer.device_certificate != before.device_certificate
    assert device.table_assignments == answer.table_assignments == before.table_assignments
    assert device.provisioning_id == answer.provisioning_id != before.provisioning_id
    assert device.provisioned_at > before.provisioned_at
    assert device.app_version == "2.0"
    assert device.certificate_expires_at == expiry(answer)
    assert verdict(authority, old_camera.token()) is Verdict.FAIL
    assert verdict(authority, camera_of("camera-1", answer).token()) is Verdict.PASS
    with authority.database.read() as connection:
        [(earlier, revocation)] = certificates_store.list_earlier(connection, "camera-1")
        [listed] = ca_store.list_revocations(connection)
        known = certificates_store.find_certificates(
            connection, [before.certificate_serial, device.certificate_serial, "ab"]
        )
    assert earlier.certificate_serial == listed.certificate_serial == before.certificate_serial
    assert earlier.certificate_expires_at == before.certificate_expires_at
    old = x509.load_pem_x509_certificate(before.device_certificate.encode())
    assert earlier.not_before == old.not_valid_before_utc
    assert earlier.replaced_by == ACTOR.name
    assert revocation == Revocation(earlier.replaced_at, "superseded")
    assert listed.revocation_reason == "superseded"
    assert {each.certificate_serial: each.is_current for each in known.values()} == {
        before.certificate_serial: False,
        device.certificate_serial: True,
    }
    assert known[device.certificate_serial].revocation is None
    assert rows_of(authority.database, "SELECT * FROM re_enrolments") == []
    assert isinstance(refusal(authority, again("camera-1")), DeviceAlreadyProvisionedError)


def expiry(answer: Provisioned) -> datetime:
    """Return the end of a response's certificate."""
    certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
    return certificate.not_valid_after_utc


def test_a_device_keeps_what_is_its_own(authority: Authority) -> None:
    """The same sensor, and a key that survived the reinstallation."""
    key, nuc_hash = new_key(), bytes(range(32))
    request = again("camera-1", key, nuc_hash=nuc_hash)
    re_enrol(authority, request)
    allow(authority, "camera-1")
    answer = re_enrol(authority, again("camera-1", key, nuc_hash=nuc_hash))
    assert verdict(authority, camera_of("camera-1", answer).token()) is Verdict.PASS
    allow(authority, "camera-1")
    re_enrol(authority, again("camera-1", key, nuc_hash=nuc_hash))
    assert len(rows_of(authority.database, "SELECT * FROM earlier_certificates")) == 2


def test_the_secrets_can_be_sealed(authority: Authority) -> None:
    """The request is the ordinary one, with a recipient key."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    answer = re_enrol(authority, request_for("camera-1", **sealed_fields("camera-1")))
    assert answer.sealed_secrets is not None
    assert answer.table_keys is None


def test_it_is_counted_and_logged(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """One line, after the commit; a repeat of the request is neither."""
    new_camera(authority, "camera-1")
    old = find(authority, "camera-1").certificate_serial
    allow(authority, "camera-1")
    request = again("camera-1", idempotency_key="once")
    with caplog.at_level("INFO"):
        first = asyncio.run(authority.provisioner.provision(request))
        second = asyncio.run(authority.provisioner.provision(request))
    assert first == second
    assert [each.message for each in caplog.records if "re-enrolled" in each.message] == [
        f"re-enrolled camera-1 as {first.provisioning_id}: its certificate {old} is revoked as"
        " superseded"
    ]
    counted = OUTCOMES.total(authority.figures.shared_counters.all())
    assert counted["re_enrolled",] == 1
    assert counted["provisioned",] == 1


# --- who may


def test_nobody_may_without_permission(authority: Authority) -> None:
    """A CSR for a serial that exists is 409, as ever."""
    new_camera(authority, "camera-1")
    assert isinstance(refusal(authority, again("camera-1")), DeviceAlreadyProvisionedError)
    ordinary = key_for(authority, may_re_enrol=False)
    error = refusal(authority, again("camera-1", enrolled_with=ordinary))
    assert isinstance(error, DeviceAlreadyProvisionedError)


def test_a_permission_ends_by_the_clock_of_the_database(authority: Authority) -> None:
    """Threat 45: neither the caller's clock nor this machine's counts."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    past = "'2020-01-01 00:00:00.000000+00:00'"
    execute(authority.database, f"UPDATE re_enrolments SET allowed_until = {past}")
    assert isinstance(refusal(authority, again("camera-1")), DeviceAlreadyProvisionedError)


def test_a_permission_that_is_withdrawn(authority: Authority) -> None:
    """It can be given again, which replaces it."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    assert re_enrolments.cancel(authority.database, "Camera-1", actor=ACTOR) == ("camera-1", True)
    assert re_enrolments.cancel(authority.database, "camera-1", actor=ACTOR) == ("camera-1", False)
    assert isinstance(refusal(authority, again("camera-1")), DeviceAlreadyProvisionedError)
    allow(authority, "camera-1")
    allow(authority, "camera-1", 2 * DAY)
    re_enrol(authority, again("camera-1"))


def test_an_enrolment_key_with_the_right(authority: Authority) -> None:
    """Each re-enrolment is a use. The right ends with the uses."""
    new_camera(authority, "camera-1")
    key = key_for(authority, device_family="Test", uses_allowed=1)
    re_enrol(authority, again("camera-1", enrolled_with=key))
    with authority.database.read() as connection:
        [(earlier, _)] = certificates_store.list_earlier(connection, "camera-1")
    assert earlier.replaced_by == f"key {key.key_id}"
    error = refusal(authority, again("camera-1", enrolled_with=key))
    assert isinstance(error, EnrolmentRefusedError)
    suspend_device(authority.database, "camera-1")
    error = refusal(authority, again("camera-1", enrolled_with=key))
    assert isinstance(error, EnrolmentRefusedError)


def test_a_right_closes_the_operators_permission(authority: Authority) -> None:
    """Otherwise anybody else could re-enrol the device a second time."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    re_enrol(authority, again("camera-1", enrolled_with=key_for(authority)))
    assert isinstance(refusal(authority, again("camera-1")), DeviceAlreadyProvisionedError)


def test_a_key_of_another_family_learns_nothing(authority: Authority) -> None:
    """Neither that the device is of another family, nor its status, nor its spelling."""
    new_camera(authority, "camera-1", device_family="Phone")
    key = key_for(authority, device_family="Test")
    allow(authority, "camera-1")
    for request in (
        again("camera-1", enrolled_with=key),
        again("CAMERA-1", enrolled_with=key),
        request_for("camera-1", enrolled_with=key),
        again("camera-1", enrolled_with=key, device_family="Phone"),
    ):
        assert isinstance(refusal(authority, request), DeviceAlreadyProvisionedError)


@pytest.mark.parametrize("by_key", [False, True])
def test_only_an_active_device_may(authority: Authority, by_key: bool) -> None:
    """Also if the permission was given before, or the right is the key's."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    key = key_for(authority) if by_key else None
    suspend_device(authority.database, "camera-1")
    error = refusal(authority, again("camera-1", enrolled_with=key))
    assert isinstance(error, ReEnrolmentRefusedError)
    assert "suspended" in str(error)
    assert "sma devices reinstate" in str(error)
    reinstate_device(authority.database, "camera-1")
    revoke_device(authority.database, "camera-1", "key_compromise")
    error = refusal(authority, again("camera-1", enrolled_with=key))
    assert isinstance(error, ReEnrolmentRefusedError)
    assert "another serial" in str(error)
    with pytest.raises(BirthmarkError, match="only an active device"):
        allow(authority, "camera-1")


# --- what is refused


def test_a_public_key_alone_proves_nothing(authority: Authority) -> None:
    """Threat 4: who knows the serial could have a stranger's key certified under it."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    error = refusal(authority, request_for("camera-1"))
    assert isinstance(error, CsrRefusedError)
    assert "csr" in str(error)


def test_the_family_stays(authority: Authority) -> None:
    """A permission is for this device, not for another one of its name."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    error = refusal(authority, again("camera-1", device_family="Phone"))
    assert isinstance(error, DeviceDescriptionRefusedError)
    assert "Test" not in str(error)


def test_another_spelling_is_the_same_device(authority: Authority) -> None:
    """Threat 40: it becomes no second device, and the answer names the spelling to use."""
    new_camera(authority, "Camera-1")
    allow(authority, "camera-1")
    error = refusal(authority, again("CAMERA-1"))
    assert isinstance(error, ReEnrolmentRefusedError)
    assert "'Camera-1'" in str(error)
    re_enrol(authority, again("Camera-1"))


def test_keys_and_nuc_hashes_of_others_are_refused(authority: Authority) -> None:
    """Of active, of revoked and of re-enrolled devices."""
    taken, nuc_hash = new_key(), bytes(range(32))
    new_camera(authority, "other", device_public_key=public_pem(taken), nuc_hash=nuc_hash)
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    error = refusal(authority, again("camera-1", taken))
    assert isinstance(error, PublicKeyInUseError)
    assert isinstance(refusal(authority, again("camera-1", nuc_hash=nuc_hash)), NucHashInUseError)
    revoke_device(authority.database, "other", "key_compromise")
    assert isinstance(refusal(authority, again("camera-1", taken)), KeyRefusedError)


def test_an_earlier_key_belongs_to_its_device(authority: Authority) -> None:
    """Threat 39: nobody else gets it certified, nor the device itself, nor as a recipient key."""
    first, second = new_key(), new_key()
    re_enrol(authority, again("camera-1", first))
    allow(authority, "camera-1")
    re_enrol(authority, again("camera-1", second))
    new_camera(authority, "other")
    allow(authority, "camera-1")
    allow(authority, "other")
    error = refusal(authority, again("camera-1", first))
    assert isinstance(error, KeyRefusedError)
    assert "was replaced" in str(error)
    for serial in ("other", "stranger"):
        assert isinstance(refusal(authority, again(serial, first)), PublicKeyInUseError)
        sealed = request_for(serial, **sealed_fields(serial, first))
        assert isinstance(refusal(authority, sealed), KeyEncryptionKeyRefusedError)
    revoke_device(authority.database, "camera-1", "key_compromise")
    for serial in ("other", "stranger"):
        error = refusal(authority, again(serial, first))
        assert isinstance(error, KeyRefusedError)
        assert "revoked" in str(error)


def test_a_batch_re_enrols_nobody(authority: Authority, settings: Settings) -> None:
    """A file that names a device once more must not end its certificate."""
    new_camera(authority, "Camera-1")
    allow(authority, "camera-1")
    before = everything(authority)
    key = key_for(authority)
    with opened_in_bulk(settings) as bulk:
        outcomes = bulk.provision(
            [
                again("Camera-1"),
                again("CAMERA-1"),
                again("camera-1", enrolled_with=key),
            ],
            lambda _: None,
        )
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "RegisteredBefore",
        "DeviceAlreadyProvisionedError",
        "DeviceAlreadyProvisionedError",
    ]
    assert everything(authority)[:-1] == before[:-1]


# --- a lost response


def test_a_lost_response_is_repeated(authority: Authority) -> None:
    """The permission is used once; another body under the same key is refused."""
    new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    request = again("camera-1", idempotency_key="once")
    first = re_enrol(authority, request)
    assert re_enrol(authority, request) == first
    error = refusal(authority, again("camera-1", idempotency_key="once"))
    assert isinstance(error, IdempotencyKeyReusedError)
    assert len(rows_of(authority.database, "SELECT * FROM earlier_certificates")) == 1


def test_a_repeat_after_the_access_key_lapsed(authority: Authority) -> None:
    """The new key gets the first answer, even if it could re-enrol the device once more."""
    new_camera(authority, "camera-1")
    first_key = key_for(authority, "first")
    request = again("camera-1", idempotency_key="once", enrolled_with=first_key)
    first = re_enrol(authority, request)
    revoke_key(authority.database, "first", actor=ACTOR)
    second_key = key_for(authority, "second")
    assert re_enrol(authority, replace(request, enrolled_with=second_key)) == first
    assert len(rows_of(authority.database, "SELECT * FROM earlier_certificates")) == 1


# --- races


def race(*actions: Callable[[], object]) -> Counter[str]:
    """Run actions at once. Return the names of what they returned or raised."""
    start = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> str:
        start.wait(30)
        try:
            return type(action()).__name__
        except BirthmarkError as error:
            return type(error).__name__

    with ThreadPoolExecutor(len(actions)) as threads:
        return Counter(threads.map(run, actions))


@pytest.mark.parametrize("by_right", [False, True])
def test_of_many_re_enrolments_one_wins(
    authority: Authority, settings: Settings, by_right: bool
) -> None:
    """Through two programs. With the right, one that comes after another's commit wins as well."""
    new_camera(authority, "camera-1")
    key = key_for(authority) if by_right else None
    allow(authority, "camera-1")

    def attempt(program: Authority) -> Provisioned:
        return re_enrol(program, again("camera-1", enrolled_with=key))

    with opened(settings) as other:
        outcomes = race(*(partial(attempt, program) for program in [authority, other] * 5))
    assert set(outcomes) <= {"Provisioned", "DeviceAlreadyProvisionedError"}
    assert outcomes["Provisioned"] == 1 or (by_right and outcomes["Provisioned"] > 1)
    assert outcomes.total() == 10
    # Of all certificates, all but the current one are revoked.
    current = find(authority, "camera-1").certificate_serial
    query = "SELECT certificate_serial FROM {} ORDER BY certificate_serial"
    earlier = rows_of(authority.database, query.format("earlier_certificates"))
    assert rows_of(authority.database, query.format("revoked_certificates")) == earlier
    assert len(earlier) == outcomes["Provisioned"]
    assert (current,) not in earlier


def test_a_revocation_at_the_same_time(authority: Authority) -> None:
    """Threat 6: whichever is first, no certificate is left unrevoked, and nothing passes."""
    for number in range(10):
        serial = f"camera-{number}"
        camera = new_camera(authority, serial)
        allow(authority, serial)
        answers: list[Provisioned] = []

        def enrol(serial: str, answers: list[Provisioned]) -> None:
            answers.append(re_enrol(authority, again(serial)))

        race(
            partial(enrol, serial, answers),
            partial(revoke_device, authority.database, serial, "key_compromise"),
        )
        assert verdict(authority, camera.token()) is Verdict.FAIL
        for answer in answers:
            assert verdict(authority, camera_of(serial, answer).token()) is Verdict.FAIL
    every = rows_of(
        authority.database,
        "SELECT certificate_serial FROM registered_devices"
        " UNION SELECT certificate_serial FROM earlier_certificates ORDER BY 1",
    )
    revoked = rows_of(
        authority.database,
        "SELECT certificate_serial, revocation_reason FROM revoked_certificates ORDER BY 1",
    )
    assert revoked == [(*row, "key_compromise") for row in every]


def test_a_key_that_another_device_takes_at_the_same_time(
    authority: Authority, settings: Settings
) -> None:
    """Threat 4: each key is certified for one device, whoever was first."""
    with opened(settings) as other:
        for number in range(5):
            serial, key = f"camera-{number}", new_key()
            new_camera(authority, serial)
            allow(authority, serial)
            outcomes = race(
                partial(re_enrol, authority, again(serial, key)),
                partial(re_enrol, other, again(f"new-{number}", key)),
            )
            assert outcomes == {"Provisioned": 1, "PublicKeyInUseError": 1}


def candidate(authority: Authority, request: ProvisioningRequest) -> IssuedDevice:
    """Return the candidate of a request, as before its batch."""
    prepared = authority.provisioner._prepare(request)
    assert isinstance(prepared, IssuedDevice)
    return prepared


def test_a_replaced_key_that_another_device_brings_at_the_same_time(authority: Authority) -> None:
    """Threat 39: also if the check before the signature came before the re-enrolment."""
    thief, key = new_key(), new_key()
    re_enrol(authority, again("camera-1", key))
    allow(authority, "camera-1")
    prepared = candidate(authority, again("thief", thief))
    stolen = replace(
        prepared,
        device=replace(prepared.device, public_key_fingerprint=fingerprint(key.public_key())),
    )
    re_enrol(authority, again("camera-1"))
    with pytest.raises(PublicKeyInUseError):
        authority.provisioner.writer.submit(stolen, None).result(30)
    families = "SELECT device_family, devices FROM device_family_counters"
    assert rows_of(authority.database, families) == [("Test", 1)]


def test_a_key_that_is_taken_between_check_and_commit(authority: Authority) -> None:
    """The others of the batch are re-enrolled, and the permission of the loser stays."""
    key = new_key()
    for serial in ("camera-1", "camera-2"):
        new_camera(authority, serial)
        allow(authority, serial)
    loser = candidate(authority, again("camera-1", key))
    winner = candidate(authority, again("camera-2"))
    new_camera(authority, "other", device_public_key=public_pem(key))
    with authority.database.write() as transaction:
        first, second = authority.provisioner._register(transaction, [loser, winner])
    assert isinstance(first, PublicKeyInUseError)
    assert second == winner.answer
    assert rows_of(authority.database, "SELECT device_serial FROM re_enrolments") == [("camera-1",)]
    assert rows_of(authority.database, "SELECT device_serial FROM earlier_certificates") == [
        ("camera-2",)
    ]


def test_a_key_that_is_taken_between_the_last_check_and_the_update(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNIQUE constraint decides. Its error is the loser's alone, and undoes what it did."""
    key = new_key()
    for serial in ("camera-1", "camera-2"):
        new_camera(authority, serial)
        allow(authority, serial)
    loser = candidate(authority, again("camera-1", key))
    winner = candidate(authority, again("camera-2"))
    new_camera(authority, "other", device_public_key=public_pem(key))
    before = find(authority, "camera-1")
    find_key_holders = uniqueness.find_key_holders
    asked: list[object] = []

    def find_none_at_first(*arguments: Any) -> Any:
        asked.append(arguments)
        return {} if len(asked) == 1 else find_key_holders(*arguments)

    monkeypatch.setattr(uniqueness, "find_key_holders", find_none_at_first)
    with authority.database.write() as transaction:
        first, second = authority.provisioner._register(transaction, [loser, winner])
    assert isinstance(first, PublicKeyInUseError)
    assert second == winner.answer
    assert find(authority, "camera-1") == before
    earlier = rows_of(authority.database, "SELECT device_serial FROM earlier_certificates")
    assert earlier == [("camera-2",)]
    assert rows_of(authority.database, "SELECT device_serial FROM re_enrolments") == [("camera-1",)]


def test_a_key_that_is_replaced_while_it_is_looked_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 39: between two queries for it, a re-enrolment must not hide whose it is."""
    key = new_key()
    re_enrol(authority, again("camera-1", key))
    allow(authority, "camera-1")
    mark = fingerprint(key.public_key())
    with authority.database.read() as connection:
        execute_one = connection.execute
        asked: list[object] = []

        def replace_meanwhile(*arguments: Any) -> Any:
            asked.append(arguments)
            if len(asked) == 2:
                re_enrol(authority, again("camera-1"))
            return execute_one(*arguments)

        monkeypatch.setattr(connection, "execute", replace_meanwhile)
        holders = uniqueness.find_key_holders(connection, [mark])
    assert len(asked) == 2
    assert holders[mark].device_serial == "camera-1"


def test_it_commits_after_the_validations_under_way(authority: Authority) -> None:
    """Threat 6: no token with the lost NUC hash passes after the commit, in any process."""
    re_enrol(authority, again("camera-1"))
    allow(authority, "camera-1")
    before = everything(authority)
    with ThreadPoolExecutor(1) as thread:
        with validation_under_way(authority.database):
            changed = thread.submit(re_enrol, authority, again("camera-1"))
            with pytest.raises(TimeoutError):
                changed.result(0.5)
            assert everything(authority) == before
        changed.result(20)
    assert everything(authority) != before


def test_a_sandbox_forgets_them(authority: Authority) -> None:
    """What is deleted with a device, so that its serial and its keys are free again."""
    key = new_key()
    re_enrol(authority, again("camera-1", key))
    allow(authority, "camera-1")
    re_enrol(authority, again("camera-1"))
    allow(authority, "camera-1")
    with authority.database.write() as transaction:
        now = authority.database.clock.now() + DAY
        assert device_store.delete_older(transaction, now, limit=10) == 1
    for table in ("earlier_certificates", "re_enrolments"):
        assert rows_of(authority.database, f"SELECT * FROM {table}") == []
    re_enrol(authority, again("camera-1", key))


def test_one_that_fails_in_the_middle_leaves_the_old_certificate(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 30: all of it or nothing."""
    camera = new_camera(authority, "camera-1")
    allow(authority, "camera-1")
    before = everything(authority)

    def fail(*_: Any) -> None:
        raise OSError("a fault of any kind")

    with monkeypatch.context() as patched:
        patched.setattr(device_store, "replace_identity", fail)
        with pytest.raises(OSError, match="of any kind"):
            re_enrol(authority, again("camera-1"))
    assert everything(authority) == before
    assert verdict(authority, camera.token()) is Verdict.PASS
    re_enrol(authority, again("camera-1"))
