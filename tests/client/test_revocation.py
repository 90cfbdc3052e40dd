"""Revocation lists: which are believed, and that a long one costs a bundle nothing."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.client import RevocationList, verify_bundle
from birthmark_sma.client.revocation import check_revocation
from birthmark_sma.errors import (
    BundleError,
    ClientMisuseError,
    DeviceRevokedError,
    DeviceSuspendedError,
    RevocationUnknownError,
)
from birthmark_sma.pki import der
from birthmark_sma.pki.crl import HOLD, REASONS, RevokedCertificate, sign_crl
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.pki.names import distinguished_name
from tests.support.cameras.bundles import bundle_of
from tests.support.pki import chains
from tests.support.pki.chains import NOW, ca, device_key, sound_chain

DAY = timedelta(days=1)
LEAF = sound_chain("camera-7").leaf
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
NUMBER = x509.CRLNumber(7)
Builder = x509.CertificateRevocationListBuilder


def builder(*extensions: tuple[x509.ExtensionType, bool]) -> Builder:
    """A list of the intermediate's that was not made by `sign_crl`."""
    made = Builder().issuer_name(ca().intermediate.subject).last_update(NOW).next_update(NOW + DAY)
    for extension, critical in extensions:
        made = made.add_extension(extension, critical=critical)
    return made


def entry(serial: int, *extensions: tuple[x509.ExtensionType, bool]) -> x509.RevokedCertificate:
    made = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
    for extension, critical in extensions:
        made = made.add_extension(extension, critical=critical)
    return made.build()


def signed(made: Builder, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    crl = made.sign(key or ca().signer.key, ca().signer.hash_algorithm)
    return crl.public_bytes(Encoding.DER)


def load(der: bytes) -> RevocationList:
    return RevocationList.load(der, issuer=ca().intermediate)


def point(**changes: object) -> x509.IssuingDistributionPoint:
    """An issuing distribution point of a list that is not complete."""
    fields: dict[str, object] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**fields | changes)  # type: ignore[arg-type]


KEY_COMPROMISE = frozenset({x509.ReasonFlags.key_compromise})
PARTIAL: dict[str, x509.ExtensionType] = {
    "some reasons": point(only_some_reasons=KEY_COMPROMISE),
    "CAs only": point(only_contains_ca_certs=True),
    "users only": point(only_contains_user_certs=True),
    "indirect": point(indirect_crl=True),
    "changes since another list": x509.DeltaCRLIndicator(6),
}


def test_what_a_list_says() -> None:
    made = builder((NUMBER, False)).add_revoked_certificate(entry(LEAF.serial_number))
    crl = load(signed(made))
    assert crl.number == 7
    assert crl.this_update == NOW.replace(microsecond=0)
    assert crl.next_update == (NOW + DAY).replace(microsecond=0)
    assert crl.entries.keys() == {LEAF.serial_number}
    with pytest.raises(DeviceRevokedError):
        check_revocation(LEAF, issuer=ca().intermediate, crl=crl, now=NOW)
    check_revocation(sound_chain("camera-8").leaf, issuer=ca().intermediate, crl=crl, now=NOW)


# --- what an entry means: by its reason, and by the times of revocation, capture and receipt

REVOKED_AT = NOW - 10 * DAY
SINCE = NOW - 20 * DAY  # the key is in other hands
BEFORE_SINCE, BEFORE, AFTER = NOW - 21 * DAY, NOW - 11 * DAY, NOW - 9 * DAY
GOOD, REVOKED, ON_HOLD = None, DeviceRevokedError, DeviceSuspendedError
NO_INVALIDITY = [each for each in REASONS if each not in {"superseded", "cessation_of_operation"}]
MEANINGS: list[tuple[str, datetime | None, datetime, datetime | None, type[Exception] | None]] = [
    # reason, invalidity date, captured (the camera's word), received, outcome
    ("key_compromise", SINCE, BEFORE_SINCE, BEFORE_SINCE, GOOD),
    ("key_compromise", SINCE, BEFORE_SINCE, SINCE, REVOKED),  # the very second
    ("key_compromise", SINCE, BEFORE_SINCE, BEFORE, REVOKED),
    ("key_compromise", SINCE, BEFORE_SINCE, None, REVOKED),  # received now
    ("key_compromise", AFTER, BEFORE, BEFORE, GOOD),  # it leaked after it was revoked
    ("key_compromise", NOW, BEFORE, AFTER, REVOKED),
    *((reason, None, BEFORE_SINCE, BEFORE_SINCE, REVOKED) for reason in NO_INVALIDITY),
    # An invalidity date beside another reason changes nothing.
    ("privilege_withdrawn", SINCE, BEFORE_SINCE, BEFORE_SINCE, REVOKED),
    ("unspecified", SINCE, BEFORE_SINCE, BEFORE_SINCE, REVOKED),
    *(
        (reason, None, captured, received, outcome)
        for reason in ("superseded", "cessation_of_operation")
        for captured, received, outcome in (
            (BEFORE, BEFORE, GOOD),
            (BEFORE, None, GOOD),  # from the queue of a camera that was offline
            (AFTER, BEFORE, GOOD),  # a fast clock, but it was here before
            (AFTER, None, REVOKED),
            (REVOKED_AT, REVOKED_AT, REVOKED),
        )
    ),
    (HOLD, None, BEFORE_SINCE, BEFORE_SINCE, ON_HOLD),
    (HOLD, None, AFTER, None, ON_HOLD),
]


@pytest.mark.parametrize(("reason", "since", "captured_at", "received_at", "outcome"), MEANINGS)
def test_what_a_reason_means(
    reason: str,
    since: datetime | None,
    captured_at: datetime,
    received_at: datetime | None,
    outcome: type[Exception] | None,
) -> None:
    """Threat 6: the camera's word is believed only if nobody else can have the key."""
    entry = RevokedCertificate(LEAF.serial_number, REVOKED_AT, reason, since)
    crl = load(
        sign_crl(
            [entry],
            issuer=ca().intermediate,
            signer=ca().signer,
            number=1,
            this_update=NOW,
            next_update=NOW + DAY,
        )
    )

    def check() -> None:
        check_revocation(
            LEAF,
            issuer=ca().intermediate,
            crl=crl,
            now=NOW,
            received_at=received_at,
            captured_at=captured_at,
        )

    if outcome is None:
        check()
        return
    with pytest.raises(outcome):
        check()


def test_a_device_that_is_suspended_is_not_rejected_for_ever() -> None:
    """Whoever keeps a bundle if the list is unknown keeps it here as well."""
    assert issubclass(DeviceSuspendedError, RevocationUnknownError)
    assert not issubclass(DeviceSuspendedError, BundleError)


def test_a_serial_number_that_stands_twice() -> None:
    """Nothing is accepted then, whichever of the two entries a reader prefers."""
    gentle = x509.CRLReason(x509.ReasonFlags.superseded)
    made = builder((NUMBER, False))
    made = made.add_revoked_certificate(entry(LEAF.serial_number, (gentle, False)))
    made = made.add_revoked_certificate(entry(LEAF.serial_number))
    with pytest.raises(DeviceRevokedError):
        check_revocation(
            LEAF,
            issuer=ca().intermediate,
            crl=load(signed(made)),
            now=NOW,
            received_at=NOW - 30 * DAY,
        )


def test_a_bundle_is_kept_by_its_time_of_receipt() -> None:
    """Compromised since T: only this server's own clock says what it had before."""
    crl = load(
        sign_crl(
            [RevokedCertificate(LEAF.serial_number, NOW, "key_compromise", NOW - DAY)],
            issuer=ca().intermediate,
            signer=ca().signer,
            number=1,
            this_update=NOW,
            next_update=NOW + DAY,
        )
    )
    bundle = bundle_of(LEAF, ca().intermediate, device_key("ec-p256"), captured_at=NOW)
    verify = partial(verify_bundle, bundle, root=ca().root, now=NOW, crl=crl)
    verify(received_at=NOW - 2 * DAY)
    for received_at in (NOW - DAY, NOW, None):
        with pytest.raises(DeviceRevokedError):
            verify(received_at=received_at)
    with pytest.raises(ClientMisuseError, match="received_at"):
        verify(received_at=NOW.replace(tzinfo=None))


# --- lists that are not believed


@pytest.mark.parametrize("critical", [True, False])
@pytest.mark.parametrize("extension", PARTIAL.values(), ids=PARTIAL)
def test_a_partial_list_is_refused(extension: x509.ExtensionType, critical: bool) -> None:
    """It does not name all that are revoked, whether it admits that as critical or not."""
    with pytest.raises(RevocationUnknownError, match="partial"):
        load(signed(builder((NUMBER, False), (extension, critical))))


def test_a_list_without_a_number_is_refused() -> None:
    """Nothing would tell it from an older one: RFC 5280, section 5.2.3."""
    with pytest.raises(RevocationUnknownError, match="no number"):
        load(signed(builder()))


def test_critical_extensions_that_are_not_understood() -> None:
    """Of the list and of its entries; what is not critical may be ignored."""
    load(signed(builder((NUMBER, False), (UNKNOWN, False))))
    with pytest.raises(RevocationUnknownError, match=r"unknown critical extension: 1\.3\.6\.1"):
        load(signed(builder((NUMBER, False), (UNKNOWN, True))))
    ignored = builder((NUMBER, False)).add_revoked_certificate(entry(5, (UNKNOWN, False)))
    assert load(signed(ignored)).entries.keys() == {5}


@pytest.mark.parametrize("of_entry", [False, True])
def test_an_extension_that_stands_twice(of_entry: bool) -> None:
    """RFC 5280, section 4.2: the library has an error of its own for it, when it is looked at."""
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), b"\x05\x00")
    two = (UNKNOWN, False), (other, False)
    made = builder((NUMBER, False), *(() if of_entry else two))
    if of_entry:
        made = made.add_revoked_certificate(entry(5, *two))
    tbs = x509.load_der_x509_crl(signed(made)).tbs_certlist_bytes
    # The two identifiers differ in their last byte, before which 1.3.6.1.4.1.99999 stands.
    arc = bytes.fromhex("2b06010401868d1f")
    twice = tbs.replace(arc + b"\x02", arc + b"\x01")
    assert twice != tbs
    signer = ca().signer
    with pytest.raises(RevocationUnknownError, match="cannot be read"):
        load(der.signed(twice, signer.signature_algorithm, signer.sign(twice)))


@pytest.mark.parametrize(
    ("extension", "critical"),
    [
        (UNKNOWN, True),
        (x509.CertificateIssuer([x509.DirectoryName(distinguished_name("Another CA"))]), True),
        (x509.CertificateIssuer([x509.DirectoryName(distinguished_name("Another CA"))]), False),
    ],
)
def test_entries_that_are_not_understood(extension: x509.ExtensionType, critical: bool) -> None:
    """The 99 sound entries do not make up for one that may mean another certificate."""
    made = builder((NUMBER, False))
    for serial in range(1, 100):
        made = made.add_revoked_certificate(entry(serial))
    made = made.add_revoked_certificate(entry(100, (extension, critical)))
    with pytest.raises(RevocationUnknownError, match="entry"):
        load(signed(made))


@pytest.mark.parametrize("usage", [None, False], ids=["no key usage", "no cRLSign"])
def test_the_issuer_may_sign_lists(usage: bool | None) -> None:
    """RFC 5280, section 6.3.3 (f): the same key and name, in another certificate."""
    made = (
        x509.CertificateBuilder()
        .subject_name(ca().intermediate.subject)
        .issuer_name(ca().root.subject)
        .public_key(ca().signer.public_key)
        .serial_number(9)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
    )
    if usage is not None:
        signs_certificates = x509.KeyUsage(
            False, False, False, False, False, True, usage, False, False
        )
        made = made.add_extension(signs_certificates, critical=True)
    issuer = made.sign(ca().root_signer.key, ca().root_signer.hash_algorithm)
    with pytest.raises(RevocationUnknownError, match="cRLSign"):
        RevocationList.load(signed(builder((NUMBER, False))), issuer=issuer)


def altered() -> bytes:
    der = bytearray(signed(builder((NUMBER, False))))
    der[-1] ^= 1
    return bytes(der)


MALFORMED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a certificate": lambda: ca().intermediate.public_bytes(Encoding.DER),
    "a login page": lambda: b"<!doctype html>",
    "altered": altered,
    "another key": lambda: signed(
        builder((NUMBER, False)), ec.generate_private_key(ec.SECP256R1())
    ),
    "another name": lambda: signed(
        Builder()
        .issuer_name(distinguished_name("Another CA"))
        .last_update(NOW)
        .next_update(NOW + DAY)
        .add_extension(NUMBER, critical=False)
    ),
}


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_the_issuers_list(make: Callable[[], bytes]) -> None:
    with pytest.raises(RevocationUnknownError):
        load(make())


def test_the_list_of_another_issuer_says_nothing() -> None:
    """A device under another intermediate is not on this list, and not cleared by it either."""
    crl = load(signed(builder((NUMBER, False))))
    foreign = ca(CaKeyType.EC_P384)
    with pytest.raises(RevocationUnknownError, match="device's issuer"):
        check_revocation(LEAF, issuer=foreign.intermediate, crl=crl, now=NOW)
    renewed = chains.make_ca(CaKeyType.EC_P256, now=NOW - DAY).intermediate
    assert renewed != ca().intermediate
    check_revocation(LEAF, issuer=renewed, crl=crl, now=NOW)  # the same CA's newer certificate


def test_a_time_without_a_zone_is_the_callers_mistake() -> None:
    crl = load(signed(builder((NUMBER, False))))
    with pytest.raises(ClientMisuseError, match="time zone"):
        check_revocation(LEAF, issuer=ca().intermediate, crl=crl, now=NOW.replace(tzinfo=None))


def test_a_bundle_costs_the_same_under_a_long_list() -> None:
    """10,000 entries once added 24 ms to each bundle, which is 30 times what it takes."""
    entries = [RevokedCertificate(serial, NOW, "superseded") for serial in range(1, 10_001)]
    crl = load(
        sign_crl(
            entries,
            issuer=ca().intermediate,
            signer=ca().signer,
            number=1,
            this_update=NOW,
            next_update=NOW + DAY,
        )
    )
    bundle = bundle_of(LEAF, ca().intermediate, device_key("ec-p256"), captured_at=NOW)

    def shortest(with_list: RevocationList | None) -> float:
        times = []
        for _ in range(30):
            began = time.perf_counter()
            verify_bundle(bundle, root=ca().root, now=NOW, crl=with_list)
            times.append(time.perf_counter() - began)
        return min(times)

    assert shortest(crl) < 2 * shortest(None)
