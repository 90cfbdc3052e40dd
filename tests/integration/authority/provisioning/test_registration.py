"""What a register refuses beside what is taken: other spellings of a name, and keys of others."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from birthmark_sma.authority.authority import Authority, opened_in_bulk
from birthmark_sma.authority.devices import uniqueness
from birthmark_sma.authority.devices.revocation import find_named
from birthmark_sma.authority.provisioning.service import Provisioned, ProvisioningRequest
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BirthmarkError,
    DeviceAlreadyProvisionedError,
    DeviceSerialRefusedError,
    KeyEncryptionKeyRefusedError,
    KeyRefusedError,
    PublicKeyInUseError,
    UnknownDeviceError,
)
from birthmark_sma.pki.keys.key_policy import check_key_encryption_key, fingerprint, load_public_key
from birthmark_sma.pki.names import RECIPIENT_KEY_URN_PREFIX, requested_subject
from tests.support.authorities import execute, new_camera, opened, request_for, rows_of
from tests.support.cameras.camera import new_key, public_pem
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device
from tests.support.pki.weak_keys import next_prime, public_key, sound_modulus, weak_moduli

SPELLINGS = ("Cam-1", "cam-1", "CAM-1", "\uff23\uff41\uff4d\uff0d\uff11", "Cam\ufe0f-1")


def refusal(authority: Authority, request: ProvisioningRequest) -> BirthmarkError:
    """Return the error with which a device is refused."""
    before = rows_of(authority.database, "SELECT count(*) FROM registered_devices")
    with pytest.raises(BirthmarkError) as caught:
        authority.provisioner.provision_device(request)
    assert rows_of(authority.database, "SELECT count(*) FROM registered_devices") == before
    return caught.value


def pem_of(key: ec.EllipticCurvePublicKey | x25519.X25519PublicKey) -> str:
    """Write a public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def sealed_request_for(device_serial: str, recipient: str) -> ProvisioningRequest:
    """Return a request whose CSR names the device and its recipient key, in PEM."""
    digest = fingerprint(check_key_encryption_key(load_public_key(recipient))).hex()
    uri = x509.UniformResourceIdentifier(f"{RECIPIENT_KEY_URN_PREFIX}sha-256:{digest}")
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(requested_subject(device_serial))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(new_key(), hashes.SHA256())
    )
    return request_for(
        device_serial,
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
        key_encryption_public_key=recipient,
    )


# --- names


def test_one_name_is_one_device(authority: Authority) -> None:
    """Threat 40: whichever way a name is spelled, it is provisioned once."""
    new_camera(authority, SPELLINGS[0])
    for spelling in SPELLINGS[1:]:
        error = refusal(authority, request_for(spelling))
        assert isinstance(error, DeviceAlreadyProvisionedError), spelling
    for spelling in ("Cam-1 ", " Cam-1", "\u2800", "\u3164"):
        assert isinstance(refusal(authority, request_for(spelling)), DeviceSerialRefusedError)


def test_composed_and_decomposed(authority: Authority) -> None:
    """Threat 40: the register keeps the serial as it was given."""
    new_camera(authority, "caf\u00e9")
    assert isinstance(refusal(authority, request_for("cafe\u0301")), DeviceAlreadyProvisionedError)
    assert rows_of(authority.database, "SELECT device_serial FROM registered_devices") == [
        ("caf\u00e9",)
    ]


def test_spellings_that_come_at_once(authority: Authority, settings: Settings) -> None:
    """Threat 40: two programs, three names, each spelled eight ways: three devices, no deadlock."""
    spellings = [
        name
        for stem in ("alpha", "beta", "gamma")
        for name in (stem, stem.upper(), stem.title(), *(f"{stem}{ignored}" for ignored in IGNORED))
    ]
    start = threading.Barrier(len(spellings))

    def run(program: Authority, name: str) -> str:
        start.wait(30)
        try:
            return type(program.provisioner.provision_device(request_for(name))).__name__
        except BirthmarkError as error:
            return type(error).__name__

    with opened(settings) as second, ThreadPoolExecutor(len(spellings)) as threads:
        programs = [authority, second] * len(spellings)
        outcomes = Counter(threads.map(run, programs, spellings))
    assert outcomes == {
        "Provisioned": 3,
        "DeviceAlreadyProvisionedError": len(spellings) - 3,
    }


IGNORED = ("\ufe0f", "\u3164", "\u115f", "\u034f", "\ufe00")


def test_a_batch_obeys_the_same(authority: Authority, settings: Settings) -> None:
    """Threat 40: within one transaction too, and against what is registered."""
    new_camera(authority, "Known")
    names = ["Cam", "cam", "CAM", "known", "Known", "other"]
    with opened_in_bulk(settings) as bulk:
        outcomes = bulk.provision([request_for(name) for name in names], lambda _: None)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Provisioned",
        "DeviceAlreadyProvisionedError",
        "DeviceAlreadyProvisionedError",
        "DeviceAlreadyProvisionedError",
        "RegisteredBefore",
        "Provisioned",
    ]


def test_any_spelling_finds_the_device(authority: Authority) -> None:
    """Threat 40: whoever revokes a camera need not know how its name was first typed."""
    new_camera(authority, "Cam-1")
    assert suspend_device(authority.database, "CAM-1") == "Cam-1"
    assert reinstate_device(authority.database, "cam-1") == "Cam-1"
    assert revoke_device(authority.database, "\uff23AM-1", "key_compromise") == "Cam-1"
    assert rows_of(authority.database, "SELECT device_serial FROM revoked_certificates") == [
        ("Cam-1",)
    ]
    with (
        authority.database.read() as connection,
        pytest.raises(UnknownDeviceError, match="No device cam-2 is registered"),
    ):
        find_named(connection, "cam-2")


def test_a_name_of_several_must_be_exact(authority: Authority) -> None:
    """Devices that collided before are found exactly; another spelling could be either."""
    for serial in ("Cam-1", "stand-in"):
        new_camera(authority, serial)
    execute(
        authority.database,
        "UPDATE registered_devices SET device_serial = 'CAM-1',"
        " serial_folded = :folded WHERE device_serial = 'stand-in'",
        folded=f"cam-1{uniqueness.COLLISION_SEPARATOR}PROV-1",
    )
    assert suspend_device(authority.database, "CAM-1") == "CAM-1"
    assert suspend_device(authority.database, "Cam-1") == "Cam-1"
    with pytest.raises(UnknownDeviceError, match=r"2 devices .* 'Cam-1', 'CAM-1'\. Give one"):
        revoke_device(authority.database, "cam-1", "superseded")


# --- keys


def test_a_key_of_a_revoked_device_is_refused(authority: Authority) -> None:
    """Threat 39: its private key may be known; nobody gets it certified again."""
    key = public_pem(new_key())
    new_camera(authority, "lost", device_public_key=key)
    again = request_for("found", device_public_key=key)
    assert isinstance(refusal(authority, again), PublicKeyInUseError)
    revoke_device(authority.database, "lost", "key_compromise")
    error = refusal(authority, again)
    assert isinstance(error, KeyRefusedError)
    assert "revoked" in str(error)
    assert isinstance(refusal(authority, request_for("lost")), DeviceAlreadyProvisionedError)


def test_a_signing_key_is_no_recipient_key(authority: Authority) -> None:
    """Threat 39: neither the device's own, nor another's, revoked or not."""
    key = public_pem(new_key())
    own = request_for("camera", device_public_key=key, key_encryption_public_key=key)
    error = refusal(authority, own)
    assert isinstance(error, KeyEncryptionKeyRefusedError)
    assert "the key that the device signs with" in str(error)

    new_camera(authority, "other", device_public_key=key)
    others = sealed_request_for("camera", key)
    assert "A device signs" in str(refusal(authority, others))
    revoke_device(authority.database, "other", "key_compromise")
    error = refusal(authority, others)
    assert isinstance(error, KeyEncryptionKeyRefusedError)
    assert "revoked" in str(error)


def test_a_refused_recipient_spares_the_others(authority: Authority, settings: Settings) -> None:
    """In a batch, the one whose recipient key is another's is refused alone."""
    key = public_pem(new_key())
    new_camera(authority, "other", device_public_key=key)
    with opened_in_bulk(settings) as bulk:
        outcomes = bulk.provision(
            [sealed_request_for("bad", key), request_for("good")],
            lambda _: None,
        )
    assert isinstance(outcomes[0], KeyEncryptionKeyRefusedError)
    assert isinstance(outcomes[1], Provisioned)


def test_the_keys_of_the_authority_are_refused(authority: Authority) -> None:
    """Threat 39: root and intermediate, to sign with and to seal to."""
    for certificate in (authority.root, authority.issuer.certificate):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for fields in (
            {"device_public_key": pem_of(key)},
            {"key_encryption_public_key": pem_of(key)},
        ):
            error = refusal(authority, request_for("camera", **fields))
            assert isinstance(error, KeyRefusedError)
            assert "a key of the authority itself" in str(error)


def test_keys_that_anybody_knows_are_refused(authority: Authority) -> None:
    """Threat 39: private key 1, a prime modulus, and X25519's base point, with their cause."""
    generator = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    base_point = x25519.X25519PublicKey.from_public_bytes(bytes([9, *bytes(31)]))
    prime = public_key(next_prime(sound_modulus(2048)))
    square = public_key(weak_moduli()["square"])
    prime_pem, square_pem = (
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()
        for key in (prime, square)
    )
    for field, pem, cause in (
        ("device_public_key", pem_of(generator), "published"),
        ("key_encryption_public_key", pem_of(generator), "published"),
        ("key_encryption_public_key", pem_of(base_point), "published"),
        ("device_public_key", prime_pem, "is a prime"),
        ("key_encryption_public_key", prime_pem, "is a prime"),
        ("device_public_key", square_pem, "perfect square"),
        ("key_encryption_public_key", square_pem, "perfect square"),
    ):
        error = refusal(authority, request_for("camera", **{field: pem}))
        assert isinstance(error, KeyRefusedError)
        assert cause in str(error)
