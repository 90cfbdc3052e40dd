"""Provisioning: a certificate, three tables and their keys, exactly once for a serial."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from jwcrypto import jwe, jwk
from sqlalchemy import event

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.provisioning import (
    idempotency,
    issuance,
)
from birthmark_sma.authority.provisioning import (
    service as provisioning_service,
)
from birthmark_sma.authority.provisioning.idempotency import StoredResponses, request_digest
from birthmark_sma.authority.provisioning.service import Provisioned, ProvisioningRequest
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BirthmarkError,
    CsrRefusedError,
    DatabaseUnavailableError,
    DeviceAlreadyProvisionedError,
    DeviceSerialRefusedError,
    IdempotencyKeyReusedError,
    KeyRefusedError,
    NucHashInUseError,
    PoolFullError,
    PublicKeyInUseError,
    ShuttingDownError,
    WrongSecretError,
)
from birthmark_sma.pki import certificates
from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.protocol.key_table import Sample, TableSizes, assign_tables
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.outages import writer_commits
from tests.support.access_keys import issue as issue_key
from tests.support.authorities import (
    TABLES,
    camera_of,
    execute,
    new_authority,
    new_camera,
    opened,
    openssl,
    request_for,
    rows_of,
    small_settings,
    writers_held_up,
)
from tests.support.cameras.camera import csr_pem, new_key, public_pem, sealed_fields
from tests.support.databases.postgres import Postgres
from tests.support.programs.wrong_clock import trust_the_machine

NOBODY = Caller(None)


def provision(authority: Authority, request: ProvisioningRequest) -> Provisioned:
    """Provision a device from this thread."""
    return authority.provisioner.provision_device(request)


def registered(authority: Authority, device_serial: str) -> Device:
    """Return what is registered under a serial."""
    with authority.database.read() as connection:
        device = device_store.find_device(connection, device_serial)
    assert device is not None
    return device


def count_devices(authority: Authority) -> int:
    """Return how many devices are registered."""
    with authority.database.read() as connection:
        return device_store.count_devices(connection)


def outcomes_of(
    asked: Iterable[tuple[Authority, ProvisioningRequest]],
) -> list[Provisioned | BirthmarkError]:
    """Ask all of this at the same time; return what each got, or its error."""
    calls = list(asked)
    start = threading.Barrier(len(calls))

    def run(call: tuple[Authority, ProvisioningRequest]) -> Provisioned | BirthmarkError:
        start.wait(30)
        try:
            return provision(*call)
        except BirthmarkError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def names(outcomes: Iterable[object]) -> Counter[str]:
    """Count the kinds of outcome."""
    return Counter(type(outcome).__name__ for outcome in outcomes)


# --- what a device gets


def test_what_a_device_gets(authority: Authority) -> None:
    """Threat 7: everything that it needs, and its tokens pass from the first moment."""
    key = new_key()
    clock = authority.database.clock  # times go by the database's clock, not by the machine's
    before = clock.now()
    answer = provision(authority, request_for("camera-1", device_public_key=public_pem(key)))
    certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
    assert certificate.public_key() == key.public_key()
    assert len(answer.certificate_chain) == 2
    assert answer.certificate_chain[1] == _pem(authority.root)
    assert answer.certificate_chain[0] == _pem(authority.issuer.certificate)
    assert len(bytes.fromhex(answer.simulated_nuc_hash or "")) == 32
    assert answer.sealed_secrets is None
    assert answer.table_keys == {
        str(table_id): authority.table_cache.keys.current[table_id].master_key.hex()
        for table_id in answer.table_assignments
    }
    assert before <= answer.provisioned_at <= clock.now()
    assert answer.provisioned_at.utcoffset() == timedelta(0)

    token = camera_of("camera-1", answer).token()
    assert authority.validator.submit(token, NOBODY).result(30).verdict is Verdict.PASS


def test_what_is_registered(authority: Authority) -> None:
    """The register agrees with the answer, and holds the NUC hash only as HMAC (threat 13)."""
    request = request_for("camera-1", app_version="1.2.3", device_family="Raspberry Pi")
    answer = provision(authority, request)
    device = registered(authority, "camera-1")
    certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
    assert device.device_certificate == answer.device_certificate
    assert int(device.certificate_serial, 16) == certificate.serial_number
    assert device.device_public_key == request.device_public_key
    assert device.table_assignments == answer.table_assignments
    assert device.provisioning_id == answer.provisioning_id
    assert device.provisioned_at == answer.provisioned_at
    assert (device.device_family, device.app_version) == ("Raspberry Pi", "1.2.3")
    assert device.status.value == "active"
    assert device.nuc_hash != bytes.fromhex(answer.simulated_nuc_hash or "")


@pytest.mark.parametrize(
    "make",
    [
        new_key,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["P-256", "P-384", "RSA-2048", "Ed25519"],
)
def test_openssl_verifies_the_certificate(
    authority: Authority, tmp_path: Path, make: Callable[[], Any]
) -> None:
    """Threats 1, 2 and 3: a strict path from device to root, for every kind of device key."""
    answer = provision(authority, request_for("Kamera № 7", device_public_key=public_pem(make())))
    files = {
        "leaf": answer.device_certificate,
        "intermediate": answer.certificate_chain[0],
        "root": answer.certificate_chain[1],
    }
    for name, pem in files.items():
        (tmp_path / name).write_text(pem)
    verified = openssl(
        "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", tmp_path / "root",
        "-untrusted", tmp_path / "intermediate", tmp_path / "leaf",
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_a_device_s_own_nuc_hash(authority: Authority) -> None:
    """It is kept, answered back, and its tokens pass."""
    own = bytes(range(32))
    camera = new_camera(authority, "camera-1", nuc_hash=own)
    assert camera.nuc_hash == own
    token = camera.token()
    assert authority.validator.submit(token, NOBODY).result(30).verdict is Verdict.PASS


def test_simulated_nuc_hashes_differ(authority: Authority) -> None:
    """No two devices get the same."""
    hashes = {new_camera(authority, f"camera-{number}").nuc_hash for number in range(20)}
    assert len(hashes) == 20


def test_a_csr_in_place_of_a_key(authority: Authority) -> None:
    """Threat 4: proof of possession; the key inside is certified under the serial asked for."""
    key = new_key()
    answer = provision(authority, ProvisioningRequest("camera-1", "Test", csr=csr_pem(key)))
    certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
    assert certificate.public_key() == key.public_key()
    with pytest.raises(PublicKeyInUseError):
        provision(authority, request_for("camera-2", device_public_key=public_pem(key)))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (request_for("camera-1", device_public_key="no key"), KeyRefusedError),
        (request_for("camera-1", device_public_key=""), KeyRefusedError),
        (
            request_for(
                "camera-1", device_public_key=public_pem(x25519.X25519PrivateKey.generate())
            ),
            KeyRefusedError,
        ),
        (ProvisioningRequest("camera-1", "Test", csr="no csr"), CsrRefusedError),
        (request_for("camera\n1"), DeviceSerialRefusedError),
        (request_for("c" * 65), DeviceSerialRefusedError),
        (request_for(""), DeviceSerialRefusedError),
        (
            request_for(
                "camera-1",
                key_encryption_public_key=public_pem(ed25519.Ed25519PrivateKey.generate()),
            ),
            KeyRefusedError,
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    authority: Authority, request_: ProvisioningRequest, error: type[BirthmarkError]
) -> None:
    """Threat 4: neither a device nor a first answer; the same serial can be provisioned next."""
    with pytest.raises(error):
        provision(authority, replace(request_, idempotency_key="key"))
    assert count_devices(authority) == 0
    assert rows_of(authority.database, "SELECT * FROM idempotent_responses") == []
    new_camera(authority, "camera-1", idempotency_key="key")


def test_a_published_authority_says_where_its_crl_is(tmp_path: Path, database_url: str) -> None:
    """With a public URL, certificates name CRL, OCSP and the issuer's certificate; else nothing."""
    settings = small_settings(tmp_path, database_url, public_url="https://sma.example.org/")
    with new_authority(settings) as authority:
        answer = provision(authority, request_for("camera-1"))
    extensions = x509.load_pem_x509_certificate(answer.device_certificate.encode()).extensions
    points = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (name,) = points[0].full_name or []
    assert name.value == "https://sma.example.org/pki/intermediate.crl"
    access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [each.access_location.value for each in access] == [
        "https://sma.example.org/pki/ocsp/",
        "https://sma.example.org/pki/intermediate.crt",
    ]

    with opened(small_settings(tmp_path, database_url)) as authority:
        answer = provision(authority, request_for("camera-2"))
    extensions = x509.load_pem_x509_certificate(answer.device_certificate.encode()).extensions
    kinds = {type(extension.value) for extension in extensions}
    assert not kinds & {x509.CRLDistributionPoints, x509.AuthorityInformationAccess}


def test_provisioning_ids_are_unique(authority: Authority) -> None:
    """Threat 9: the day, and 64 random bits that depend on nothing of the device."""
    answers = [provision(authority, request_for(f"camera-{number}")) for number in range(30)]
    ids = {answer.provisioning_id for answer in answers}
    assert len(ids) == 30
    for answer in answers:
        day, _, unique = answer.provisioning_id.removeprefix("PROV-").partition("-")
        assert day == f"{answer.provisioned_at:%Y%m%d}"
        assert len(unique) >= 16
        int(unique, 16)


def test_no_repr_shows_a_secret(authority: Authority) -> None:
    """Threat 28: request and answer can be logged."""
    request = request_for("camera-1", nuc_hash=bytes(range(32)))
    answer = provision(authority, request)
    assert answer.table_keys is not None
    assert answer.simulated_nuc_hash is not None
    for secret in (answer.simulated_nuc_hash, *answer.table_keys.values()):
        assert secret not in repr(answer)
        assert secret not in repr(request)
    assert "\\x01\\x02" not in repr(request)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


# --- secrets sealed to the device


@pytest.mark.parametrize(
    "make",
    [
        new_key,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        x25519.X25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "X25519", "RSA"],
)
def test_sealed_secrets(authority: Authority, make: Callable[[], Any]) -> None:
    """Another library opens NUC hash and table keys, and none of them lies open beside."""
    key = make()
    own = bytes(range(32))
    answer = provision(
        authority, request_for("camera-1", **sealed_fields("camera-1", key), nuc_hash=own)
    )
    assert answer.table_keys is None
    assert answer.simulated_nuc_hash is None
    assert answer.sealed_secrets is not None
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    sealed = jwe.JWE()
    sealed.deserialize(answer.sealed_secrets, jwk.JWK.from_pem(pem))
    certificate = x509.load_pem_x509_certificate(answer.device_certificate.encode())
    assert json.loads(sealed.payload) == {
        "device_serial": "camera-1",
        "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "nuc_hash": own.hex(),
        "table_keys": {
            str(table_id): authority.table_cache.keys.current[table_id].master_key.hex()
            for table_id in answer.table_assignments
        },
    }
    uris = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert not [uri for uri in uris if "recipient-key" in str(uri.value)]


def test_an_answer_of_an_earlier_version_is_given_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was kept with a member that there is no more, and without one that there is now."""

    def as_it_was(answer: Any) -> dict[str, Any]:
        fields = asdict(answer)
        if isinstance(answer, Provisioned):  # requests are written with it too
            del fields["sealed_secrets"]
            fields["table_keys_jwe"] = None
        return fields

    request = request_for("camera-1", idempotency_key="key")
    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "asdict", as_it_was)
        first = provision(authority, request)
    assert provision(authority, request) == first


RECIPIENT, OTHERS = new_key(), new_key()
URN = recipient_urn(RECIPIENT.public_key())
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no CSR": ({"csr": None, "device_public_key": public_pem(new_key())}, "needs a CSR"),
    "another key": ({"key_encryption_public_key": public_pem(OTHERS)}, "another recipient key"),
    "no recipient key": ({"key_encryption_public_key": None}, "sent unencrypted"),
    "no common name": ({"csr": csr_pem(new_key(), None, URN)}, "common name"),
    "no URI": ({"csr": csr_pem(new_key(), "camera-1")}, "does not name the recipient key"),
    "another URI": (
        {"csr": csr_pem(new_key(), "camera-1", URN.replace("recipient", "other"))},
        "subjectAltName is not the device_serial",
    ),
    "two URIs": (
        {"csr": csr_pem(new_key(), "camera-1", URN, recipient_urn(OTHERS.public_key()))},
        "once",
    ),
    "a short digest": ({"csr": csr_pem(new_key(), "camera-1", URN[:-2])}, "once"),
    "another digest": (
        {"csr": csr_pem(new_key(), "camera-1", URN.replace("sha-256", "sha-384"))},
        "once",
    ),
    "another common name": ({"csr": csr_pem(new_key(), "camera-2", URN)}, "common name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_recipient_key_is_the_one_that_the_csr_names(authority: Authority, name: str) -> None:
    """Threat 41: a relay can neither put its own key in its place, nor leave the key out."""
    changes, told = REFUSED[name]
    sound = sealed_fields("camera-1", RECIPIENT)
    with pytest.raises(CsrRefusedError, match=told):
        provision(authority, request_for("camera-1", **sound | changes))
    assert provision(authority, request_for("camera-1", **sound)).sealed_secrets


# --- tables


def test_three_distinct_tables_ascending(authority: Authority) -> None:
    """Each of them one that exists, in the answer and in the register."""
    for number in range(20):
        answer = provision(authority, request_for(f"camera-{number}"))
        tables = answer.table_assignments
        assert len(set(tables)) == 3
        assert list(tables) == sorted(tables)
        assert all(0 <= table_id < TABLES for table_id in tables)
    rows = rows_of(authority.database, "SELECT table_assignments FROM registered_devices")
    assert all(len(json.loads(str(row[0]))) == 3 for row in rows)


def test_tables_come_from_the_operating_system(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 10: `random` may be seeded, it is `SystemRandom` that draws."""
    draws: list[Any] = []

    def watch(sizes: TableSizes, sample: Sample) -> tuple[int, ...]:
        draws.append(sample)
        return assign_tables(sizes, sample)

    monkeypatch.setattr(issuance, "assign_tables", watch)
    assigned = set()
    for number in range(12):
        random.seed(1)
        assigned.add(provision(authority, request_for(f"camera-{number}")).table_assignments)
    assert len(assigned) > 3
    for draw in draws:
        assert isinstance(draw.__self__, random.SystemRandom)


def test_tables_are_assigned_evenly(settings: Settings) -> None:
    """Threat 10: over many devices no table stands out (chi squared, one error in a billion)."""
    times = 150
    with new_authority(settings) as authority:
        counts: Counter[int] = Counter()
        for number in range(times):
            counts.update(provision(authority, request_for(f"camera-{number}")).table_assignments)
    expected = times * 3 / TABLES
    chi_squared = sum((counts[table_id] - expected) ** 2 / expected for table_id in range(TABLES))
    assert chi_squared < 49  # the quantile for 5 degrees of freedom at 1 - 2e-9


# --- conflicts


def test_a_serial_is_provisioned_once(authority: Authority) -> None:
    """Threat 8: the second is told so, whatever else it brings, and nothing changes."""
    first = provision(authority, request_for("camera-1"))
    before = registered(authority, "camera-1")
    with pytest.raises(DeviceAlreadyProvisionedError, match=r"^Device already provisioned$"):
        provision(authority, request_for("camera-1"))
    assert registered(authority, "camera-1") == before
    assert before.provisioning_id == first.provisioning_id


def test_a_public_key_belongs_to_one_device(authority: Authority) -> None:
    """Threat 4: the same key under another serial is refused, in whatever PEM it comes."""
    pem = public_pem(new_key())
    provision(authority, request_for("camera-1", device_public_key=pem))
    for spelling in (pem, pem.replace("\n", "\r\n"), f"text before\n{pem}text after"):
        with pytest.raises(PublicKeyInUseError):
            provision(authority, request_for("camera-2", device_public_key=spelling))
    assert count_devices(authority) == 1


def test_a_nuc_hash_belongs_to_one_device(authority: Authority) -> None:
    """Two devices of one NUC hash could not be told apart."""
    new_camera(authority, "camera-1", nuc_hash=bytes(range(32)))
    with pytest.raises(NucHashInUseError):
        provision(authority, request_for("camera-2", nuc_hash=bytes(range(32))))
    assert count_devices(authority) == 1


def test_serials_that_differ_are_different(authority: Authority) -> None:
    """Accents, points and spaces inside count."""
    for serial in ("camera", "c\u00e1mera", "ca mera", "camera.", "c-amera"):
        new_camera(authority, serial)
    assert count_devices(authority) == 5


def test_a_conflict_costs_no_signature(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certain refusal must not keep a core busy with RSA-4096."""
    new_camera(authority, "camera-1")

    def sign(*_: Any, **__: Any) -> None:
        raise AssertionError("something was signed")

    monkeypatch.setattr(certificates, "sign", sign)
    with pytest.raises(DeviceAlreadyProvisionedError):
        provision(authority, request_for("camera-1"))


def test_twenty_at_once_for_one_serial(authority: Authority, settings: Settings) -> None:
    """Threat 8: exactly one answer, nineteen conflicts, and the register agrees with the answer.

    Half of them ask another program on the same database.
    """
    with opened(settings) as other:
        outcomes = outcomes_of(
            (program, request_for("camera-1")) for program in [authority, other] * 10
        )
    assert names(outcomes) == {"Provisioned": 1, "DeviceAlreadyProvisionedError": 19}
    (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Provisioned))
    assert registered(authority, "camera-1").device_certificate == winner.device_certificate
    assert count_devices(authority) == 1
    token = camera_of("camera-1", winner).token()
    assert authority.validator.submit(token, NOBODY).result(30).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("shared", "error"),
    [
        ({"device_public_key": public_pem(new_key())}, "PublicKeyInUseError"),
        ({"nuc_hash": bytes(range(32))}, "NucHashInUseError"),
    ],
    ids=["public key", "NUC hash"],
)
def test_many_at_once_for_one_key(
    authority: Authority, settings: Settings, shared: dict[str, Any], error: str
) -> None:
    """Threats 4 and 8: of ten serials with one key or NUC hash, one is registered."""
    with opened(settings) as other:
        outcomes = outcomes_of(
            ([authority, other][number % 2], request_for(f"camera-{number}", **shared))
            for number in range(10)
        )
    assert names(outcomes) == {"Provisioned": 1, error: 9}
    assert count_devices(authority) == 1


def test_many_serials_at_once(authority: Authority, settings: Settings) -> None:
    """Twenty devices at two programs in opposite order: all get theirs, nobody waits for ever."""
    with opened(settings) as other:
        outcomes = outcomes_of(
            (program, request_for(f"camera-{number}"))
            for program, numbers in ((authority, range(10)), (other, range(19, 9, -1)))
            for number in numbers
        )
    assert names(outcomes) == {"Provisioned": 20}
    assert count_devices(authority) == 20


# --- the same request again


def test_the_same_request_gets_the_first_answer(authority: Authority, settings: Settings) -> None:
    """Threat 8: a lost response is had again, keys and all, also from another program."""
    request = request_for("camera-1", idempotency_key="key", nuc_hash=bytes(range(32)))
    first = provision(authority, request)
    assert provision(authority, request) == first
    with opened(settings) as other:
        assert provision(other, request) == first
    assert asyncio.run(authority.provisioner.provision(request)) == first
    assert count_devices(authority) == 1


def test_a_sealed_answer_is_had_again(authority: Authority) -> None:
    """As JWE, the very same text."""
    request = request_for("camera-1", idempotency_key="key", **sealed_fields("camera-1"))
    first = provision(authority, request)
    assert provision(authority, request) == first


@pytest.mark.parametrize(
    "change",
    [
        {"device_serial": "camera-2"},
        {"device_family": "Other"},
        {"app_version": "2"},
        {"nuc_hash": bytes(32)},
        {"device_public_key": public_pem(new_key())},
        sealed_fields("camera-1"),
        {"device_public_key": None, "csr": csr_pem(new_key())},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_request_needs_another_key(authority: Authority, change: dict[str, Any]) -> None:
    """Whatever part of the body differs; and the first answer stays."""
    request = request_for("camera-1", idempotency_key="key")
    first = provision(authority, request)
    with pytest.raises(IdempotencyKeyReusedError):
        provision(authority, replace(request, **change))
    assert provision(authority, request) == first
    assert count_devices(authority) == 1


def test_another_key_is_another_request(authority: Authority) -> None:
    """The same body under a new key is a conflict, and with it its key stays free."""
    request = request_for("camera-1", idempotency_key="key")
    provision(authority, request)
    for key in ("other", "KEY", "key ", None):
        with pytest.raises(DeviceAlreadyProvisionedError):
            provision(authority, replace(request, idempotency_key=key))
    other = provision(authority, request_for("camera-2", idempotency_key="other"))
    assert registered(authority, "camera-2").provisioning_id == other.provisioning_id


@pytest.mark.parametrize("age", [timedelta(hours=24, seconds=1), timedelta(days=400)])
def test_after_a_day_a_key_is_forgotten(
    authority: Authority, age: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old answer is gone, for the same request and for another one."""
    trust_the_machine(monkeypatch)
    request = request_for("camera-1", idempotency_key="key")
    provision(authority, request)
    _make_older(authority, age)
    with pytest.raises(DeviceAlreadyProvisionedError):
        provision(authority, request)
    provision(authority, request_for("camera-2", idempotency_key="key"))
    assert rows_of(authority.database, "SELECT count(*) FROM idempotent_responses") == [(1,)]


def test_within_a_day_a_key_is_kept(authority: Authority) -> None:
    """To the last minute, and also while others' old answers are swept away."""
    request = request_for("camera-1", idempotency_key="key")
    first = provision(authority, request)
    _make_older(authority, timedelta(hours=23, minutes=59))
    provision(authority, request_for("camera-2", idempotency_key="other"))
    assert provision(authority, request) == first


def _make_older(authority: Authority, age: timedelta) -> None:
    when = datetime.now(UTC) - age
    execute(
        authority.database,
        "UPDATE idempotent_responses SET created_at = :when",
        when=when.isoformat(" ", "microseconds"),
    )


def test_a_first_answer_is_sealed_to_its_key(authority: Authority) -> None:
    """Threat 13: a row moved under another key does not open, and no row tells key or request."""
    provision(authority, request_for("camera-1", idempotency_key="key-one"))
    other = request_for("camera-2", idempotency_key="key-two")
    provision(authority, other)
    rows = rows_of(authority.database, "SELECT * FROM idempotent_responses")
    assert "key-one" not in repr(rows)
    assert "camera-1" not in repr(rows)
    execute(
        authority.database,
        "UPDATE idempotent_responses SET sealed_response = (SELECT sealed_response FROM"
        " idempotent_responses WHERE request_digest <> :digest) WHERE request_digest = :digest",
        digest=request_digest(other),
    )
    with pytest.raises(WrongSecretError):
        provision(authority, other)


def test_one_key_many_times_at_once(authority: Authority, settings: Settings) -> None:
    """Threat 8: twenty impatient repetitions at two programs make one device and one answer."""
    request = request_for("camera-1", idempotency_key="key")
    with opened(settings) as other:
        outcomes = outcomes_of((program, request) for program in [authority, other] * 10)
    assert names(outcomes) == {"Provisioned": 20}, outcomes
    assert outcomes == [outcomes[0]] * 20
    assert count_devices(authority) == 1
    assert isinstance(outcomes[0], Provisioned)
    device = registered(authority, "camera-1")
    assert device.device_certificate == outcomes[0].device_certificate


def test_a_repetition_that_is_overtaken(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 8: registered between two of its questions, a request still gets the first answer.

    Its access key is used up by then, by that very answer.
    """
    access_key = issue_key(authority.database, "one device", "provision", uses_allowed=1).key
    request = request_for("camera-1", idempotency_key="key", enrolled_with=access_key)
    look = StoredResponses.find
    first: list[Provisioned] = []

    def look_and_be_overtaken(*arguments: Any) -> Provisioned | None:
        found = look(*arguments)
        if not first:
            monkeypatch.setattr(StoredResponses, "find", look)
            first.append(provision(authority, request))
        return found

    monkeypatch.setattr(StoredResponses, "find", look_and_be_overtaken)
    assert provision(authority, request) == first[0]
    assert count_devices(authority) == 1


def test_one_key_for_many_requests_at_once(authority: Authority, settings: Settings) -> None:
    """Of ten bodies under one key, one is provisioned, and the others are told why not."""
    with opened(settings) as other:
        outcomes = outcomes_of(
            (
                [authority, other][number % 2],
                request_for(f"camera-{number}", idempotency_key="key"),
            )
            for number in range(10)
        )
    assert names(outcomes) == {"Provisioned": 1, "IdempotencyKeyReusedError": 9}
    assert count_devices(authority) == 1


def gathered(
    authority: Authority, database_url: str, *requests: ProvisioningRequest
) -> list[Provisioned | BirthmarkError]:
    """Let these requests, in this order, meet in one batch of the writer."""
    writer = authority.provisioner._writer
    outcomes: dict[int, Provisioned | BirthmarkError] = {}

    def run(number: int, request: ProvisioningRequest) -> None:
        try:
            outcomes[number] = provision(authority, request)
        except BirthmarkError as error:
            outcomes[number] = error

    threads = []
    with writers_held_up(database_url):
        # The first keeps the writer busy: it waits for the database, and the others for it.
        for number, request in enumerate([request_for("held up"), *requests]):
            thread = threading.Thread(target=run, args=[number, request])
            thread.start()
            threads.append(thread)
            deadline = datetime.now(UTC) + timedelta(seconds=5)
            while writer.waiting < number and datetime.now(UTC) < deadline:
                threading.Event().wait(0.002)
            if number == 0:
                threading.Event().wait(0.2)
    for thread in threads:
        thread.join(30)
    return [outcomes[number + 1] for number in range(len(requests))]


def test_a_batch_with_conflicts_and_repetitions(authority: Authority, database_url: str) -> None:
    """Each of those who meet in one batch gets what it would have got alone, in any order."""
    shared = public_pem(new_key())
    repeated = request_for("camera-3", idempotency_key="key")
    outcomes = gathered(
        authority,
        database_url,
        request_for("camera-1"),
        request_for("camera-1"),
        request_for("camera-2", device_public_key=shared),
        request_for("camera-4", device_public_key=shared),
        repeated,
        repeated,
        request_for("camera-5", idempotency_key="key"),
    )
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Provisioned",
        "DeviceAlreadyProvisionedError",
        "Provisioned",
        "PublicKeyInUseError",
        "Provisioned",
        "Provisioned",
        "IdempotencyKeyReusedError",
    ]
    assert outcomes[4] == outcomes[5]
    assert count_devices(authority) == 4


def test_a_refused_request_gives_its_key_back(authority: Authority, database_url: str) -> None:
    """Also where the refusal comes from the writer, after the key was claimed."""
    outcomes = gathered(
        authority,
        database_url,
        request_for("camera-1"),
        request_for("camera-1", idempotency_key="key"),
    )
    assert names(outcomes) == {"Provisioned": 1, "DeviceAlreadyProvisionedError": 1}
    assert isinstance(outcomes[1], DeviceAlreadyProvisionedError)
    provision(authority, request_for("camera-2", idempotency_key="key"))


def test_a_repetition_of_a_refused_request_is_refused(
    authority: Authority, database_url: str
) -> None:
    """Threat 8: nobody gets the answer of a device that was not registered.

    Three meet in one batch: a rival for the serial, then a request and its repetition.
    """
    request = request_for("camera-1", idempotency_key="key")
    outcomes = gathered(authority, database_url, request_for("camera-1"), request, request)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Provisioned)]
    assert [answer.provisioning_id for answer in answers] == [
        registered(authority, "camera-1").provisioning_id
    ]
    assert names(outcomes) == {"Provisioned": 1, "DeviceAlreadyProvisionedError": 2}


# --- from coroutines, under load, at the end


async def test_coroutines(authority: Authority) -> None:
    """Many at once on one event loop, conflicts among them."""
    requests = [request_for(f"camera-{number % 8}") for number in range(16)]
    outcomes = await asyncio.gather(
        *(authority.provisioner.provision(request) for request in requests),
        return_exceptions=True,
    )
    assert names(outcomes) == {"Provisioned": 8, "DeviceAlreadyProvisionedError": 8}


async def test_a_coroutine_that_gives_up_leaves_nothing_half_made(authority: Authority) -> None:
    """Threat 8: cancelled at any moment, the device is registered whole or not at all."""
    request = request_for("camera-1", idempotency_key="key")
    for delay in (0, 0.001, 0.003, 0.01):
        task = asyncio.create_task(authority.provisioner.provision(request))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    answer = provision(authority, request)
    assert registered(authority, "camera-1").device_certificate == answer.device_certificate
    assert count_devices(authority) == 1


async def test_too_many_coroutines_are_turned_away(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and afterwards there is room again."""
    monkeypatch.setattr(provisioning_service, "_POOL_LIMIT", 3)
    outcomes = await asyncio.gather(
        *(authority.provisioner.provision(request_for(f"camera-{n}")) for n in range(5)),
        return_exceptions=True,
    )
    assert names(outcomes) == {"Provisioned": 3, "PoolFullError": 2}
    assert isinstance(outcomes[4], PoolFullError)
    await authority.provisioner.provision(request_for("camera-6"))


async def test_one_caller_cannot_turn_the_others_away(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have as many requests under way as are free. Afterwards nothing of it is left."""
    monkeypatch.setattr(provisioning_service, "_POOL_LIMIT", 8)
    callers = ["hog"] * 6 + ["other"] * 2
    provision_for = authority.provisioner.provision
    outcomes = await asyncio.gather(
        *(provision_for(request_for(f"camera-{n}"), who) for n, who in enumerate(callers)),
        return_exceptions=True,
    )
    assert names(outcomes[:6]) == {"Provisioned": 4, "PoolFullError": 2}
    assert names(outcomes[6:]) == {"Provisioned": 2}
    authority.provisioner.check_room("hog")
    assert not vars(authority.provisioner)["_under_way_of"]


def test_closing_finishes_what_is_under_way(settings: Settings) -> None:
    """Threat 31: a request that was accepted before the close is provisioned and answered."""
    with new_authority(settings) as authority:

        async def scenario() -> list[Any]:
            tasks = [
                asyncio.create_task(authority.provisioner.provision(request_for(f"camera-{n}")))
                for n in range(8)
            ]
            await asyncio.sleep(0)
            closing = asyncio.create_task(asyncio.to_thread(authority.provisioner.close))
            await asyncio.sleep(0)
            time.sleep(0.2)  # a busy loop, which must not decide who is served
            await closing
            return await asyncio.gather(*tasks, return_exceptions=True)

        outcomes = asyncio.run(scenario())
        assert names(outcomes) == {"Provisioned": 8}, outcomes
        assert count_devices(authority) == 8


def test_after_closing_requests_are_turned_away(settings: Settings) -> None:
    """Threads and coroutines alike hear that the authority is leaving, and nothing is done."""
    with new_authority(settings) as authority:
        authority.provisioner.close()
        with pytest.raises(ShuttingDownError):
            provision(authority, request_for("camera-1"))
        with pytest.raises(ShuttingDownError):
            asyncio.run(authority.provisioner.provision(request_for("camera-2")))
        assert count_devices(authority) == 0


# --- when the database fails


def test_an_outage_leaves_nothing_half_made(tmp_path: Path, own_postgres: Postgres) -> None:
    """Threats 8 and 19: while the database is away, an outage; once it is back, a device."""
    with new_authority(small_settings(tmp_path, own_postgres.url)) as authority:
        request = request_for("camera-1", idempotency_key="key")
        own_postgres.kill()
        with pytest.raises(DatabaseUnavailableError):
            provision(authority, request)
        own_postgres.restart()
        answer = provision(authority, request)
        assert registered(authority, "camera-1").provisioning_id == answer.provisioning_id


def test_a_commit_whose_answer_was_lost(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 8: the device was registered, the caller heard of an outage, and asks again.

    The outage goes on while the writer looks up what happened.
    """
    for name in ("_SECONDS", "_LEAST_SECONDS"):
        monkeypatch.setattr(writer_commits, name, 0.2)
    request = request_for("camera-1", idempotency_key="key")

    commit = authority.database.engine.dialect.do_commit
    dialect: Any = authority.database.engine.dialect

    def commit_and_lose(connection: Any) -> None:
        # The commit happens, and then the connection is gone before anybody hears of it.
        commit(connection)
        if threading.current_thread().name == "provisioning-writer":
            raise DatabaseUnavailableError("The database does not answer")

    dialect.do_commit = commit_and_lose
    with pytest.raises(DatabaseUnavailableError):
        provision(authority, request)
    dialect.do_commit = commit
    answer = provision(authority, request)
    assert registered(authority, "camera-1").provisioning_id == answer.provisioning_id
    assert count_devices(authority) == 1


def test_a_crash_before_the_commit_registers_nothing(authority: Authority) -> None:
    """Threat 8: device, certificate and first answer are one transaction."""

    def crash(*arguments: Any) -> None:
        if "INSERT INTO registered_devices" in arguments[2]:
            raise ZeroDivisionError

    request = request_for("camera-1", idempotency_key="key")
    event.listen(authority.database.engine, "after_cursor_execute", crash)
    with pytest.raises(ZeroDivisionError):
        provision(authority, request)
    event.remove(authority.database.engine, "after_cursor_execute", crash)
    assert count_devices(authority) == 0
    assert rows_of(authority.database, "SELECT * FROM idempotent_responses") == []
    provision(authority, request)
