"""OCSP responses, read by the cryptography library and OpenSSL, and linted by pkilint."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark_sma.errors import IssuerExpiredError, PathRefusedError, ProfileViolationError
from birthmark_sma.pki import certificates, profiles
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer, generate
from birthmark_sma.pki.ocsp.requests import CertId
from birthmark_sma.pki.ocsp.responses import (
    REASONS,
    CertificateStatus,
    ResponseSigner,
    ResponseStatus,
    SingleResponse,
    Status,
    hash_issuer,
    unsigned,
)
from birthmark_sma.pki.path_validation import verify_path
from tests.support.pki.certificate_verifiers import lint_certificate, lint_pair
from tests.support.pki.chains import NOW, Ca, ca, certificate_serial, make_ca
from tests.support.pki.ocsp import NONCE, lint_response, status_of, verified

SECOND = NOW.replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SERIAL = certificate_serial("asked")
GOOD, UNKNOWN = CertificateStatus(Status.GOOD), CertificateStatus(Status.UNKNOWN)


@cache
def key() -> Signer:
    """Return the key of a responder."""
    return generate(CaKeyType.EC_P256)


def responder_of(authority: Ca, now: datetime = NOW) -> x509.Certificate:
    """Issue the certificate of a responder."""
    prepared = certificates.prepare_ocsp_responder(
        key().public_key,
        issuer=authority.intermediate,
        now=now,
        serial_number=certificate_serial("responder"),
    )
    return certificates.sign(prepared, authority.signer, issuer=authority.intermediate)


def single(
    status: CertificateStatus = GOOD, *, algorithm: str = "sha1", serial: int = SERIAL
) -> SingleResponse:
    """Return the status of a certificate, for an hour."""
    cert_id = CertId(hash_issuer(ca().intermediate, algorithm), serial)
    return SingleResponse(cert_id, status, SECOND, SECOND + HOUR)


def signed(*responses: SingleResponse, nonce: bytes | None = None) -> bytes:
    """Let the responder sign."""
    return ResponseSigner(responder_of(ca()), key()).sign(responses, now=SECOND, nonce=nonce)


@pytest.mark.parametrize("key_type", CaKeyType)
def test_the_certificate_of_the_responder(key_type: CaKeyType) -> None:
    """It signs OCSP responses and nothing else, for a week, and pkilint finds nothing."""
    authority = ca(key_type)
    made = responder_of(authority)
    value = made.extensions.get_extension_for_class
    assert list(value(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert value(x509.OCSPNoCheck).value == x509.OCSPNoCheck()
    assert value(x509.KeyUsage).value == profiles.key_usage(ca=False)
    assert made.not_valid_after_utc - made.not_valid_before_utc == 7 * DAY
    assert made.not_valid_before_utc == SECOND - HOUR
    assert lint_certificate(made) == []
    assert lint_pair(authority.intermediate, made) == []


def test_no_responder_is_a_device() -> None:
    """Its certificate chains to the root, and still signs no bundle."""
    with pytest.raises(PathRefusedError):
        verify_path(responder_of(ca()), [ca().intermediate], root=ca().root, now=NOW)


def test_a_responder_ends_with_its_issuer() -> None:
    """Threat 3, in the last days of the issuer and after them."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW)
    end = authority.intermediate.not_valid_after_utc
    assert responder_of(authority, end - DAY).not_valid_after_utc == end
    for outside in (end, authority.intermediate.not_valid_before_utc - DAY):
        with pytest.raises(IssuerExpiredError):
            responder_of(authority, outside)


ALTERED: dict[str, Sequence[x509.ExtensionType]] = {
    "without nocheck": [],
    "for clients too": [
        x509.OCSPNoCheck(),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.OCSP_SIGNING]),
    ],
    "a CA": [x509.OCSPNoCheck(), x509.BasicConstraints(ca=True, path_length=None)],
    "with a name": [x509.OCSPNoCheck(), x509.SubjectAlternativeName([x509.DNSName("a.example")])],
}


@pytest.mark.parametrize("instead", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_responder_is_not_signed(instead: Sequence[x509.ExtensionType]) -> None:
    prepared = certificates.prepare_ocsp_responder(
        key().public_key, issuer=ca().intermediate, now=NOW, serial_number=certificate_serial("r")
    )
    replaced = {each.oid for each in instead} | {x509.OCSPNoCheck.oid}
    kept = [each for each in prepared.extensions if each.oid not in replaced]
    altered = replace(prepared, extensions=(*kept, *instead))
    with pytest.raises(ProfileViolationError):
        certificates.sign(altered, ca().signer, issuer=ca().intermediate)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
@pytest.mark.parametrize("nonce", [None, b"1", NONCE, bytes(128)])
def test_good(algorithm: str, nonce: bytes | None) -> None:
    """The times, the CertID, the responder by key, its certificate, the nonce."""
    response = signed(single(algorithm=algorithm), nonce=nonce)
    read = verified(response, ca().intermediate)
    assert read.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert read.serial_number == SERIAL
    assert read.hash_algorithm.name == algorithm
    hashed = hash_issuer(ca().intermediate, algorithm)
    assert (read.issuer_name_hash, read.issuer_key_hash) == hashed[1:]
    assert read.this_update_utc == read.produced_at_utc == SECOND
    assert read.next_update_utc == SECOND + HOUR
    assert read.responder_name is None
    assert read.responder_key_hash == hash_issuer(read.certificates[0], "sha1").key_hash
    nonces = [each.value for each in read.extensions]
    assert nonces == ([] if nonce is None else [x509.OCSPNonce(nonce)])
    assert lint_response(response) == []


@pytest.mark.parametrize("reason", REASONS)
def test_revoked(reason: str) -> None:
    """Each reason; "unspecified" is left out (RFC 5280, section 5.3.1)."""
    response = signed(single(CertificateStatus(Status.REVOKED, SECOND - DAY, reason)))
    read = verified(response, ca().intermediate)
    assert read.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert read.revocation_time_utc == SECOND - DAY
    flag = REASONS[reason]
    assert read.revocation_reason == (None if flag is x509.ReasonFlags.unspecified else flag)
    assert lint_response(response) == []


def test_compromised_since() -> None:
    """The time since which a key may have been known (RFC 5280, section 5.3.2)."""
    since = NOW - 2 * DAY
    status = CertificateStatus(Status.REVOKED, SECOND - DAY, "key_compromise", since)
    response = signed(single(status))
    read = verified(response, ca().intermediate)
    date = read.single_extensions.get_extension_for_class(x509.InvalidityDate).value
    assert date.invalidity_date_utc == since.replace(microsecond=0)
    assert lint_response(response) == []


def test_unknown() -> None:
    read = verified(signed(single(UNKNOWN)), ca().intermediate)
    assert read.certificate_status is ocsp.OCSPCertStatus.UNKNOWN


def test_a_revocation_by_a_fast_clock() -> None:
    """A response holds no date of the future."""
    status = CertificateStatus(Status.REVOKED, SECOND + DAY, "superseded")
    assert verified(signed(single(status)), ca().intermediate).revocation_time_utc == SECOND


def test_several(tmp_path: Path) -> None:
    """OpenSSL reads all of them, and pkilint finds nothing."""
    held = CertificateStatus(Status.REVOKED, SECOND, "certificate_hold")
    response = signed(single(), single(held, serial=5), single(UNKNOWN, serial=0), nonce=NONCE)
    file = tmp_path / "response.der"
    file.write_bytes(response)
    ran = subprocess.run(
        ["openssl", "ocsp", "-respin", file, "-resp_text", "-noverify"],
        check=True,
        capture_output=True,
        text=True,
    )
    statuses = [line.split(": ")[1] for line in ran.stdout.splitlines() if "Cert Status" in line]
    assert statuses == ["good", "revoked", "unknown"]
    assert "certificateHold (0x6)" in ran.stdout
    assert lint_response(response) == []


@pytest.mark.parametrize("status", [each for each in ResponseStatus if each])
def test_errors(status: ResponseStatus) -> None:
    """They are not signed, and pkilint finds nothing."""
    assert status_of(unsigned(status)).value == status
    assert lint_response(unsigned(status)) == []


def times(this_update: timedelta, next_update: timedelta) -> SingleResponse:
    """Return a response with times relative to now."""
    return SingleResponse(single().cert_id, GOOD, SECOND + this_update, SECOND + next_update)


REFUSED = {
    "longer than the certificate": [times(timedelta(), 7 * DAY)],
    "before the certificate": [times(-2 * HOUR, HOUR)],
    "of the future": [times(HOUR, 2 * HOUR)],
    "over at once": [times(timedelta(), timedelta())],
    "revoked without a time": [single(CertificateStatus(Status.REVOKED))],
    "good since a time": [single(CertificateStatus(Status.GOOD, SECOND))],
    "about nothing": [],
}


@pytest.mark.parametrize("responses", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_signed(responses: Sequence[SingleResponse]) -> None:
    with pytest.raises(ProfileViolationError):
        signed(*responses)


def test_the_key_belongs_to_the_certificate() -> None:
    with pytest.raises(ProfileViolationError):
        ResponseSigner(responder_of(ca()), ca().signer)


def test_a_whole_response_is_small() -> None:
    """With RSA-4096, of which the responder's certificate has one signature: for caches."""
    assert len(responder_of(ca(CaKeyType.RSA_4096)).public_bytes(Encoding.DER)) < 1_300
    assert len(signed(single())) < 1_100
