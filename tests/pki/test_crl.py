"""Revocation lists: what stands in them, and that others can read and verify them."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID

from birthmark_sma.pki.crl import HOLD, LIFETIME, REASONS, RevokedCertificate, sign_crl
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.pki.profile_check import authority_key_identifier
from tests.support.pki.certificate_verifiers import (
    lint_crl,
    openssl_accepts_crl,
    openssl_verify_with_crl,
)
from tests.support.pki.chains import NOW, Chain, ca, certificate_serial, sound_chain

REVOKED_AT = NOW - timedelta(hours=5)
FAR = datetime(2050, 1, 1, tzinfo=UTC)
"""From here on times are written with four digits of the year."""


def list_of(
    *revoked: RevokedCertificate, key_type: CaKeyType = CaKeyType.EC_P256, number: int = 1
) -> x509.CertificateRevocationList:
    """Let the intermediate of a kind sign the list of these."""
    return x509.load_der_x509_crl(der_of(revoked, key_type=key_type, number=number))


def der_of(
    revoked: Iterable[RevokedCertificate],
    *,
    key_type: CaKeyType = CaKeyType.EC_P256,
    number: int = 1,
    this_update: datetime = NOW,
) -> bytes:
    """Let the intermediate of a kind sign the list of these."""
    authority = ca(key_type)
    return sign_crl(
        revoked,
        issuer=authority.intermediate,
        signer=authority.signer,
        number=number,
        this_update=this_update,
        next_update=this_update + LIFETIME,
    )


def revoked(label: str, reason: str = "key_compromise") -> RevokedCertificate:
    """Revoke the certificate with the serial number of a label."""
    return RevokedCertificate(certificate_serial(label), REVOKED_AT, reason)


def revocation_of(chain: Chain, reason: str = "key_compromise") -> RevokedCertificate:
    """Revoke the leaf of a chain."""
    return RevokedCertificate(chain.leaf.serial_number, REVOKED_AT, reason)


SINCE = NOW - timedelta(days=30, microseconds=-1)
EVERY_REASON = [
    *(revoked(reason, reason) for reason in REASONS),
    replace(revoked("compromised since"), invalid_since=SINCE),
    replace(revoked("compromised since long"), invalid_since=datetime(1999, 1, 2, tzinfo=UTC)),
]
ON_HOLD = revoked("suspended", HOLD)
HOLD_FINDING = "cabf.crl_prohibited_reason_code"


@pytest.mark.parametrize("key_type", CaKeyType)
@pytest.mark.parametrize("entries", [[], EVERY_REASON], ids=["empty", "every reason"])
def test_openssl_and_pkilint_accept_the_list(
    key_type: CaKeyType, entries: list[RevokedCertificate]
) -> None:
    """The signature verifies under the issuer, and pkilint finds nothing to complain of."""
    signed = list_of(*entries, key_type=key_type)
    assert openssl_accepts_crl(signed, ca(key_type).intermediate)
    assert lint_crl(signed) == []


def test_openssl_refuses_an_altered_list() -> None:
    """A list from which an entry was taken, or that another authority signed, does not verify."""
    signed = list_of(revoked("a"))
    altered = bytearray(signed.public_bytes(serialization.Encoding.DER))
    altered[-1] ^= 1
    assert not openssl_accepts_crl(x509.load_der_x509_crl(bytes(altered)), ca().intermediate)
    assert not openssl_accepts_crl(signed, ca(CaKeyType.EC_P384).intermediate)


def test_a_revoked_device_is_refused_and_others_are_not() -> None:
    """Threat 6: a verifier with the list refuses the revoked certificate, and only that one."""
    lost, kept = sound_chain("lost camera"), sound_chain("kept camera")
    signed = list_of(revocation_of(lost))
    complaint = openssl_verify_with_crl(lost, signed)
    assert complaint is not None
    assert "error 23" in complaint
    assert openssl_verify_with_crl(kept, signed) is None
    assert openssl_verify_with_crl(lost, list_of()) is None


def test_the_head_of_the_list() -> None:
    """Issuer, times, key identifier and number, neither critical."""
    signed = list_of(number=4_711)
    assert signed.issuer == ca().intermediate.subject
    assert signed.last_update_utc == NOW.replace(microsecond=0)
    assert signed.next_update_utc == NOW.replace(microsecond=0) + LIFETIME
    assert timedelta(days=1) == LIFETIME
    assert {extension.oid: extension.critical for extension in signed.extensions} == {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
        ExtensionOID.CRL_NUMBER: False,
    }
    key_identifier = signed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject_key = ca().intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert key_identifier.key_identifier == subject_key.value.digest


@pytest.mark.parametrize("number", [0, 1, 255, 2**31, 2**63, 2**150])
def test_the_number_of_the_list(number: int) -> None:
    """RFC 5280, section 5.2.3: the number goes in as it is, up to 20 octets."""
    signed = list_of(number=number)
    assert signed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    assert lint_crl(signed) == []


@pytest.mark.parametrize("reason", REASONS)
def test_reasons(reason: str) -> None:
    """Section 5.3.1: each reason is given, but for "unspecified", which is left out."""
    (entry,) = list_of(revoked("a", reason))
    given = [extension.value for extension in entry.extensions]
    assert given == ([] if reason == "unspecified" else [x509.CRLReason(REASONS[reason])])
    assert all(not extension.critical for extension in entry.extensions)


def test_a_certificate_on_hold() -> None:
    """The list is in order for X.509. The CA/Browser Forum alone has no holds for web servers."""
    signed = list_of(ON_HOLD)
    [entry] = signed
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value
    assert reason.reason is x509.ReasonFlags.certificate_hold
    assert openssl_accepts_crl(signed, ca().intermediate)
    assert {finding.code for finding in lint_crl(signed)} == {HOLD_FINDING}


@pytest.mark.parametrize(
    "since", [SINCE, datetime(1999, 1, 2, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)]
)
def test_since_when_a_key_is_in_other_hands(since: datetime) -> None:
    """Section 5.3.2: whole seconds, rounded down, in GeneralizedTime whatever the year."""
    [entry] = list_of(replace(revoked("a"), invalid_since=since))
    extension = entry.extensions.get_extension_for_class(x509.InvalidityDate)
    assert not extension.critical
    assert extension.value.invalidity_date_utc == since.replace(microsecond=0)
    assert f"{since:%Y%m%d%H%M%SZ}".encode() in extension.value.public_bytes()
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is (
        x509.ReasonFlags.key_compromise
    )


def test_the_reasons_fit_devices() -> None:
    """Reasons that are for other certificates, or can be undone, are not offered."""
    assert set(REASONS.values()) == set(x509.ReasonFlags) - {
        x509.ReasonFlags.ca_compromise,
        x509.ReasonFlags.certificate_hold,
        x509.ReasonFlags.remove_from_crl,
        x509.ReasonFlags.aa_compromise,
    }


def test_every_revoked_certificate_is_found() -> None:
    """A thousand entries, each found by its serial number, and no other."""
    entries = [revoked(f"camera {number}") for number in range(1_000)]
    signed = list_of(*entries)
    assert len(signed) == 1_000
    for entry in entries[::50]:
        found = signed.get_revoked_certificate_by_serial_number(entry.certificate_serial)
        assert found is not None
        assert found.revocation_date_utc == REVOKED_AT.replace(microsecond=0)
    unknown = certificate_serial("camera 1000")
    assert signed.get_revoked_certificate_by_serial_number(unknown) is None


def test_times_of_other_zones_are_written_in_utc() -> None:
    """The same moment in another zone gives the same list."""
    tokyo = timezone(timedelta(hours=9))
    moment = datetime(2030, 1, 1, 3, tzinfo=tokyo)
    entry = RevokedCertificate(certificate_serial("a"), moment, "superseded")
    signed = x509.load_der_x509_crl(der_of([entry], this_update=moment))
    assert signed.next_update_utc == datetime(2030, 1, 1, 18, tzinfo=UTC)
    assert [entry.revocation_date_utc for entry in signed] == [moment]


def test_no_entry_is_newer_than_its_list() -> None:
    """Threat 44: what a clock dated that was ahead is dated as the list is."""
    entries = [
        RevokedCertificate(
            certificate_serial(str(ahead)), NOW + timedelta(hours=ahead), "superseded"
        )
        for ahead in (-1, 0, 1, 24 * 365)
    ]
    signed = list_of(*entries)
    at = {each.serial_number: each.revocation_date_utc for each in signed}
    issued = NOW.replace(microsecond=0)
    assert [at[each.certificate_serial] for each in entries] == [
        issued - timedelta(hours=1),
        issued,
        issued,
        issued,
    ]
    assert signed.last_update_utc == issued
    assert lint_crl(signed) == []


@pytest.mark.parametrize("key_type", CaKeyType)
def test_the_list_is_the_library_s_byte_for_byte(key_type: CaKeyType) -> None:
    """What is signed is what the library's own builder makes of the same entries."""
    authority = ca(key_type)
    for entries in ([], [*EVERY_REASON, RevokedCertificate(2**158 + 1, FAR, "superseded")]):
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.intermediate.subject)
            .last_update(FAR)
            .next_update(FAR + LIFETIME)
            .add_extension(authority_key_identifier(authority.intermediate), critical=False)
            .add_extension(x509.CRLNumber(7), critical=False)
        )
        for entry in entries:
            one = (
                x509.RevokedCertificateBuilder()
                .serial_number(entry.certificate_serial)
                .revocation_date(entry.revoked_at)
            )
            if entry.reason != "unspecified":
                one = one.add_extension(x509.CRLReason(REASONS[entry.reason]), critical=False)
            if entry.invalid_since is not None:
                since = entry.invalid_since.replace(microsecond=0)
                one = one.add_extension(x509.InvalidityDate(since), critical=False)
            built = built.add_revoked_certificate(one.build())
        theirs = built.sign(authority.signer.key, authority.signer.hash_algorithm)
        ours = der_of(entries, key_type=key_type, number=7, this_update=FAR)
        assert x509.load_der_x509_crl(ours).tbs_certlist_bytes == theirs.tbs_certlist_bytes


def test_a_list_takes_time_in_proportion_to_its_entries() -> None:
    """Threat 44: 100,000 entries once took minutes, as each was added to a copy of the others."""
    entries = [
        RevokedCertificate(
            int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:19], "big"),
            REVOKED_AT + timedelta(seconds=number % 10_000),
            "key_compromise",
        )
        for number in range(100_000)
    ]

    def seconds(some: list[RevokedCertificate]) -> float:
        began = time.perf_counter()
        assert len(x509.load_der_x509_crl(der_of(some))) == len(some)
        return time.perf_counter() - began

    few, all_of_them = seconds(entries[:10_000]), seconds(entries)
    assert all_of_them < 10
    assert all_of_them < 40 * few
