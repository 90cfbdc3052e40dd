"""`verify_bundle`: what is accepted, and that everything else ends in one tree of errors."""

import json
import secrets
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark_sma.client import (
    Cause,
    Fail,
    Indeterminate,
    Outcome,
    Pass,
    RevocationList,
    verify_bundle,
)
from birthmark_sma.client.bundle_verification import VerifiedBundle, of_the_same_device
from birthmark_sma.errors import (
    BundleCertificateError,
    BundleError,
    BundleSignatureError,
    BundleTimeError,
    ClientMisuseError,
    DeviceRevokedError,
    MalformedBundleError,
    RevocationUnknownError,
)
from birthmark_sma.pki.crl import LIFETIME, RevokedCertificate, sign_crl
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.protocol.bundle import Bundle
from tests.support.cameras.bundles import bundle_of, der
from tests.support.pki import chains
from tests.support.pki.chains import (
    DEVICE_KEY_KINDS,
    NOW,
    ca,
    device_key,
    issue_device,
    sound_chain,
)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
SERIAL = "camera-7.fleet.example.org"


def sound_bundle(captured_at: datetime = NOW) -> Bundle:
    """A bundle of a device of the authority of these tests."""
    return bundle_of(
        sound_chain(SERIAL).leaf, ca().intermediate, device_key("ec-p256"), captured_at=captured_at
    )


def verify(bundle: Bundle | bytes, *, now: datetime = NOW, **arguments: Any) -> VerifiedBundle:
    """Verify under the authority of these tests."""
    return verify_bundle(bundle, root=ca().root, now=now, **arguments)


def test_what_a_sound_bundle_proves() -> None:
    bundle = sound_bundle()
    for each in (bundle, bundle.to_json()):
        verified = verify(each)
        assert verified.device_serial == SERIAL
        assert verified.bundle_id.hex() == bundle.bundle_id
        assert verified.certificate_serial == sound_chain(SERIAL).leaf.serial_number
        assert verified.image_hash == bundle.content.image_hash
        assert verified.camera_token == bundle.content.camera_token
        assert verified.captured_at == NOW


def _altered(certificate: x509.Certificate, *changes: tuple[bytes, bytes]) -> x509.Certificate:
    der = certificate.public_bytes(Encoding.DER)
    for old, new in changes:
        before, found, after = der.rpartition(old)
        assert found
        der = before + new + after
    return x509.load_der_x509_certificate(der)


def _in_the_year_0(name: str) -> x509.Certificate:
    years = {"begins": 2055, "ends": 2056}
    key = device_key("ec-p256")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(years["begins"], 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(years["ends"], 1, 1, tzinfo=UTC))
        .sign(key, SHA256())
    )
    return _altered(certificate, (f"{years[name]}0101000000Z".encode(), b"00000101000000Z"))


def test_certificates_that_the_library_reads_late() -> None:
    """Anybody can make these: none has a signature that counts, and none ends the program."""
    sound = sound_chain(SERIAL).leaf
    common_name, key_identifier = b"\x06\x03\x55\x04\x03", b"\x06\x03\x55\x1d\x23"
    bit_string = (common_name + b"\x0c", common_name + b"\x03")
    for leaf in (
        _in_the_year_0("begins"),
        _in_the_year_0("ends"),
        _altered(sound, bit_string),
        _altered(sound, bit_string, (key_identifier, b"\x06\x03\x55\x00\x23")),
    ):
        bundle = bundle_of(
            leaf, ca().intermediate, device_key("ec-p256"), captured_at=NOW - timedelta(days=3650)
        )
        with pytest.raises(BundleCertificateError):
            verify(bundle)


def test_what_a_refusal_quotes_stays_on_its_line() -> None:
    """The subject is whoever's choice who made the certificate: no second line of a log is."""
    key = device_key("ec-p256")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x\n00\tPASS\u2028camera-7")])
    stranger = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .sign(key, SHA256())
    )
    bundle = bundle_of(stranger, ca().intermediate, key, captured_at=NOW)
    with pytest.raises(BundleCertificateError) as refused:
        verify(bundle)
    assert "PASS" in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
@pytest.mark.parametrize("authority", [CaKeyType.EC_P256, CaKeyType.EC_P384])
def test_each_kind_of_key(kind: str, authority: CaKeyType) -> None:
    key = device_key(kind)
    leaf = issue_device(ca(authority), key.public_key(), "camera")
    bundle = bundle_of(leaf, ca(authority).intermediate, key, captured_at=NOW)
    verified = verify_bundle(bundle.to_json(), root=ca(authority).root, now=NOW)
    assert verified.device_serial == "camera"


@pytest.mark.parametrize("make", chains.BAD_CHAINS, ids=lambda make: make.__name__)
def test_bad_chains(make: Any) -> None:
    """Threats 1, 2 and 3: none of the chains that verifiers refuse gets through here."""
    chain = make()
    issuers = [*chain.intermediates, ca().intermediate]
    bundle = bundle_of(chain.leaf, issuers[0], device_key("ec-p256"), captured_at=NOW)
    with pytest.raises(BundleCertificateError):
        verify_bundle(bundle, root=chain.root, now=NOW)


def test_the_signature_is_by_the_key_of_the_certificate() -> None:
    """Whoever sends another device's certificate along cannot sign for it."""
    with pytest.raises(BundleSignatureError):
        verify(replace(sound_bundle(), signature=secrets.token_bytes(70)))
    stranger = device_key("ec-p384")
    bundle = bundle_of(sound_chain(SERIAL).leaf, ca().intermediate, stranger, captured_at=NOW)
    with pytest.raises(BundleSignatureError):
        verify(bundle)


@pytest.mark.parametrize("field", ["image_hash", "camera_token", "captured_at"])
def test_nothing_can_be_exchanged(field: str) -> None:
    """Threat 31 of the token alone: in a bundle it is bound to the picture and the time."""
    ours, others = sound_bundle(), sound_bundle(NOW - HOUR)
    others = replace(others, content=replace(others.content, image_hash=bytes(32)))
    mixed = replace(ours.content, **{field: getattr(others.content, field)})
    with pytest.raises(BundleSignatureError):
        verify(Bundle(mixed, ours.signature))


# --- times


def test_a_device_clock_may_be_fast_by_an_hour() -> None:
    assert verify(sound_bundle(NOW + HOUR)).captured_at == NOW + HOUR
    with pytest.raises(BundleTimeError, match="future"):
        verify(sound_bundle(NOW + HOUR + SECOND))


def test_how_old_a_bundle_may_be() -> None:
    late = NOW + 2 * DAY
    verify(sound_bundle(), now=late, max_age=3 * DAY)
    with pytest.raises(BundleTimeError, match="too long ago"):
        verify(sound_bundle(), now=late, max_age=DAY)


def test_the_certificate_was_valid_when_the_picture_was_captured() -> None:
    with pytest.raises(BundleCertificateError):
        verify(sound_bundle(NOW - 2 * HOUR))


def test_the_certificate_is_valid_now_or_ended_within_the_grace() -> None:
    """Whoever gets hold of an old key cannot date pictures back for ever."""
    end = sound_chain(SERIAL).leaf.not_valid_after_utc
    verify(sound_bundle(), now=end)
    with pytest.raises(BundleCertificateError):
        verify(sound_bundle(), now=end + DAY)
    verify(sound_bundle(), now=end + DAY, grace=DAY)
    with pytest.raises(BundleCertificateError):
        verify(sound_bundle(), now=end + DAY + SECOND, grace=DAY)
    with pytest.raises(BundleCertificateError):
        verify(sound_bundle(end + SECOND), now=end + DAY, grace=DAY)


# --- revocation


def crl_of(
    *serials: int, authority: chains.Ca | None = None, now: datetime = NOW
) -> RevocationList:
    """A list of the intermediate's."""
    issuer = authority or ca()
    crl = sign_crl(
        [RevokedCertificate(each, now, "key_compromise") for each in serials],
        issuer=issuer.intermediate,
        signer=issuer.signer,
        number=1,
        this_update=now - timedelta(hours=1),
        next_update=now + LIFETIME,
    )
    return RevocationList.load(crl, issuer=issuer.intermediate)


def test_a_revoked_device() -> None:
    """Threat 6: revoked is revoked, whenever the picture says it was captured."""
    verify(sound_bundle(), crl=crl_of(1, 2, 3))
    crl = crl_of(sound_chain(SERIAL).leaf.serial_number)
    with pytest.raises(DeviceRevokedError):
        verify(sound_bundle(), crl=crl)
    with pytest.raises(DeviceRevokedError):
        verify(sound_bundle(NOW - HOUR / 2), crl=crl)


@pytest.mark.parametrize(
    "crl",
    [
        crl_of(now=NOW - 2 * DAY),
        crl_of(now=NOW + 3 * HOUR),
        crl_of(authority=ca(CaKeyType.EC_P384)),
    ],
    ids=["stale", "of the future", "another issuer's"],
)
def test_a_list_that_cannot_say_is_no_rejection(crl: RevocationList) -> None:
    """Threat 19: a list that could not be fetched must not reject genuine pictures."""
    with pytest.raises(RevocationUnknownError) as unknown:
        verify(sound_bundle(), crl=crl)
    assert not isinstance(unknown.value, BundleError)


def test_the_intermediate_that_came_along_is_the_issuer() -> None:
    """Else its revocation list, which the sender chose, would speak of other certificates."""
    key = device_key("ec-p256")
    leaf = chains.hand_made(
        key.public_key(),
        SERIAL,
        chains.NOT_A_CA,
        chains.key_usage(ca=False),
        chains.CLIENT_AUTH,
        issuer=ca().root,
        signer=ca().root_signer,
    )
    for beside in (ca().intermediate, ca().root):
        with pytest.raises(BundleCertificateError):
            verify(bundle_of(leaf, beside, key, captured_at=NOW))


def test_a_time_without_a_zone_is_the_callers_mistake() -> None:
    """And no rejection of the bundle."""
    with pytest.raises(ClientMisuseError, match="time zone"):
        verify(sound_bundle(), now=NOW.replace(tzinfo=None))


# --- what attackers send


DAMAGED_FROM = (sound_chain(SERIAL).leaf, ca().intermediate)
"""Made once, since each signature has a length of its own."""


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_certificate_is_refused(data: st.DataObject) -> None:
    """Whatever byte of a certificate is changed, the bundle is refused and nothing else raised."""
    which = data.draw(st.integers(0, 1))
    certificates = [bytearray(der(each)) for each in DAMAGED_FROM]
    at = data.draw(st.integers(0, len(certificates[which]) - 1))
    certificates[which][at] ^= data.draw(st.integers(1, 255))
    texts = [b64encode(each).decode() for each in certificates]
    fields = json.loads(sound_bundle().to_json()) | {"device_certificate_chain": texts}
    with pytest.raises(BundleError):
        verify(json.dumps(fields).encode())


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b"[" * 30_000])
def test_what_is_no_bundle(text: bytes) -> None:
    with pytest.raises(MalformedBundleError):
        verify(text)


def test_certificates_in_the_wrong_order() -> None:
    bundle = bundle_of(
        ca().intermediate, sound_chain(SERIAL).leaf, device_key("ec-p256"), captured_at=NOW
    )
    with pytest.raises(BundleCertificateError, match="wrong order: send the device's"):
        verify(bundle)


# --- one device


@pytest.mark.parametrize("told", [SERIAL, None])
def test_a_token_of_the_same_device_passes(told: str | None) -> None:
    outcome = Pass("SimulatedMfg", NOW, "Test", told)
    assert of_the_same_device(verify(sound_bundle()), outcome) is outcome


def test_a_token_of_another_device_fails() -> None:
    """A device that puts another's token into its bundles is told apart, where serials are told."""
    outcome = of_the_same_device(
        verify(sound_bundle()), Pass("SimulatedMfg", NOW, "Test", "another")
    )
    assert isinstance(outcome, Fail)
    assert outcome.error is not None


@pytest.mark.parametrize(
    "outcome",
    [Fail("SimulatedMfg", datetime(2026, 1, 1, tzinfo=UTC)), Indeterminate(Cause.TIMED_OUT, "So.")],
    ids=str,
)
def test_the_others_stay_what_they_are(outcome: Outcome) -> None:
    assert of_the_same_device(verify(sound_bundle()), outcome) is outcome


# --- several roots and several lists


def of_another_authority() -> Bundle:
    """A bundle under another root and intermediate, which have the same names."""
    authority = ca(CaKeyType.EC_P384)
    key = device_key("ec-p256")
    leaf = issue_device(authority, key.public_key(), "another")
    return bundle_of(leaf, authority.intermediate, key, captured_at=NOW)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_set_of_roots(swapped: bool) -> None:
    """A bundle of either is accepted, also where the roots have one name. Others are not."""
    roots = [ca().root, ca(CaKeyType.EC_P384).root]
    roots = roots[::-1] if swapped else roots
    for bundle in (sound_bundle(), of_another_authority()):
        assert verify_bundle(bundle, root=roots, now=NOW).bundle_id.hex() == bundle.bundle_id
        for trusted in ([], [ca(CaKeyType.RSA_4096).root], [ca(CaKeyType.RSA_4096).root] * 2):
            with pytest.raises(BundleCertificateError):
                verify_bundle(bundle, root=trusted, now=NOW)


def test_several_lists() -> None:
    """Each bundle is judged by the list of its issuer; without that one there is no verdict."""
    other = ca(CaKeyType.EC_P384)
    serial = sound_chain(SERIAL).leaf.serial_number
    lists = [crl_of(serial, authority=other), crl_of()]
    verify(sound_bundle(), crl=lists)
    with pytest.raises(DeviceRevokedError):
        verify(sound_bundle(), crl=[crl_of(authority=other), crl_of(serial)])
    for useless in ([], [crl_of(authority=other)], [crl_of(authority=other)] * 2):
        with pytest.raises(RevocationUnknownError):
            verify(sound_bundle(), crl=useless)


def test_the_issuer_is_on_the_list_of_its_root() -> None:
    """A compromised intermediate: nothing under it is accepted."""
    authority = ca()
    for serial, is_revoked in ((authority.intermediate.serial_number, True), (5, False)):
        der_ = sign_crl(
            [RevokedCertificate(serial, NOW, "key_compromise")],
            issuer=authority.root,
            signer=authority.root_signer,
            number=1,
            this_update=NOW,
            next_update=NOW + LIFETIME,
        )
        lists = (RevocationList.load(der_, issuer=authority.root), crl_of())
        if is_revoked:
            with pytest.raises(DeviceRevokedError, match="issuer is revoked"):
                verify(sound_bundle(), crl=lists)
        else:
            verify(sound_bundle(), crl=lists)
            verify(sound_bundle(), crl=lambda _device, _issuer, lists=lists: lists)


def test_what_was_received_before_the_issuer_was_compromised() -> None:
    """It stays valid, if the list of the root says since when."""
    authority = ca()
    hour = timedelta(hours=1)
    der_ = sign_crl(
        [RevokedCertificate(authority.intermediate.serial_number, NOW, "key_compromise", NOW)],
        issuer=authority.root,
        signer=authority.root_signer,
        number=1,
        this_update=NOW,
        next_update=NOW + LIFETIME,
    )
    lists = (RevocationList.load(der_, issuer=authority.root), crl_of())
    verify(sound_bundle(), crl=lists, received_at=NOW - hour)
    with pytest.raises(DeviceRevokedError, match="issuer is revoked"):
        verify(sound_bundle(), crl=lists, received_at=NOW + hour)
