"""OCSP requests: what is understood, and what is refused, whatever bytes come."""

import base64
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import OcspRequestRefusedError
from birthmark_sma.pki import der
from birthmark_sma.pki.ocsp.requests import (
    MOST_BYTES,
    MOST_CERTIFICATES,
    CertId,
    OcspRequest,
    decode_get,
    parse_request,
)
from birthmark_sma.pki.ocsp.responses import hash_issuer
from tests.support.pki.chains import ca, certificate_serial, device_key, issue_device
from tests.support.pki.ocsp import NONCE, joined, request_for

ISSUER = ca().intermediate
SERIAL = certificate_serial("asked")
ENCODED_SERIAL = der.integer(SERIAL)
PLAIN = request_for(ISSUER, SERIAL)
WITH_NONCE = request_for(ISSUER, SERIAL, nonce=NONCE)
NONCE_OID = "1.3.6.1.5.5.7.48.1.2"
OCTET_STRING, EXPLICIT_0, EXPLICIT_1, EXPLICIT_2 = 0x04, 0xA0, 0xA1, 0xA2
CRITICAL = b"\x01\x01\xff"


def extension(oid: str, content: bytes, critical: bytes = b"") -> bytes:
    """Return one extension."""
    return der.sequence(der.object_identifier(oid), critical, der.value(OCTET_STRING, content))


def cert_id(serial: bytes = ENCODED_SERIAL, algorithm: str = "1.3.14.3.2.26") -> bytes:
    """Return a CertID."""
    hashed = [der.value(OCTET_STRING, bytes(20))] * 2
    return der.sequence(der.sequence(der.object_identifier(algorithm)), *hashed, serial)


def request(*parts: bytes, asked: bytes | None = None, after: bytes = b"") -> bytes:
    """Return a request. `parts` stand before the list of certificates, `after` behind it."""
    listed = der.sequence(der.sequence(cert_id())) if asked is None else asked
    return der.sequence(der.sequence(*parts, listed, after))


def with_extensions(*extensions: bytes) -> bytes:
    """Return a request with these extensions."""
    return request(after=der.value(EXPLICIT_2, der.sequence(*extensions)))


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])
def test_the_request_of_another_implementation(algorithm: hashes.HashAlgorithm) -> None:
    """Both hash algorithms name the issuer, and the nonce comes out as it went in."""
    read = parse_request(request_for(ISSUER, SERIAL, algorithm=algorithm, nonce=NONCE))
    assert read == OcspRequest((CertId(hash_issuer(ISSUER, algorithm.name), SERIAL),), NONCE)
    assert parse_request(request_for(ISSUER, SERIAL, algorithm=algorithm)).nonce is None


def test_several_certificates() -> None:
    """As OpenSSL and others ask, up to ten."""
    requests = [request_for(ISSUER, SERIAL + n) for n in range(MOST_CERTIFICATES + 1)]
    read = parse_request(joined(*requests[:-1]))
    assert [each.serial_number for each in read.certificates] == [
        SERIAL + n for n in range(MOST_CERTIFICATES)
    ]
    with pytest.raises(OcspRequestRefusedError, match="1 to 10"):
        parse_request(joined(*requests))


def test_what_is_ignored() -> None:
    """Version 1 spelled out, a requestor's name, a signature, an extension that is not critical."""
    name = der.value(EXPLICIT_1, b"\x82\x01a")
    read = parse_request(request(der.value(EXPLICIT_0, b"\x02\x01\x00"), name))
    assert read.certificates[0].serial_number == SERIAL
    signed = der.sequence(request()[2:], der.value(EXPLICIT_0, b"a signature"))
    assert parse_request(signed) == parse_request(request())
    assert parse_request(with_extensions(extension("1.2.3", b"any"))).nonce is None
    of_one = der.value(EXPLICIT_0, der.sequence(extension("1.2.3", b"any")))
    asked = der.sequence(der.sequence(cert_id(), of_one))
    assert parse_request(request(asked=asked)).certificates[0].serial_number == SERIAL


def test_an_algorithm_of_no_issuer() -> None:
    """SHA-512 is well formed, but names none."""
    asked = der.sequence(der.sequence(cert_id(algorithm="2.16.840.1.101.3.4.2.3")))
    assert parse_request(request(asked=asked)).certificates[0].issuer.algorithm == ""


def nonce_extension(nonce: bytes, critical: bytes = b"") -> bytes:
    """Return the extension of a nonce of this length."""
    return extension(NONCE_OID, der.value(OCTET_STRING, nonce), critical)


@pytest.mark.parametrize("size", [1, 128])
@pytest.mark.parametrize("critical", [b"", CRITICAL], ids=["not critical", "critical"])
def test_nonces(size: int, critical: bytes) -> None:
    """RFC 9654, section 2.1: 1 to 128 bytes."""
    read = parse_request(with_extensions(nonce_extension(bytes(size), critical)))
    assert read.nonce == bytes(size)


SINGLE_CRITICAL = der.value(EXPLICIT_0, der.sequence(extension("1.2.3", b"any", CRITICAL)))
MALFORMED = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1",
    "cut off": PLAIN[:-1],
    "one byte more": PLAIN + b"\0",
    "twice": PLAIN * 2,
    "indefinite length": b"\x30\x80" + PLAIN[2:] + b"\0\0",
    "huge length": b"\x30\x88" + b"\xff" * 8,
    "no certificate": request(asked=der.sequence()),
    "version 2": request(der.value(EXPLICIT_0, b"\x02\x01\x01")),
    "a nonce of 0 bytes": with_extensions(nonce_extension(b"")),
    "a nonce of 129 bytes": with_extensions(nonce_extension(bytes(129))),
    "a nonce that is no OCTET STRING": with_extensions(extension(NONCE_OID, b"\x05\x00")),
    "a nonce that is bare": with_extensions(extension(NONCE_OID, NONCE)),
    "two nonces": with_extensions(nonce_extension(NONCE), nonce_extension(NONCE)),
    "a critical extension": with_extensions(extension("1.2.3", b"any", CRITICAL)),
    "a critical single extension": request(
        asked=der.sequence(der.sequence(cert_id(), SINGLE_CRITICAL))
    ),
    "an extension without a value": with_extensions(der.sequence(der.object_identifier("1.2.3"))),
    "a negative serial number": request(asked=der.sequence(der.sequence(cert_id(b"\x02\x01\x80")))),
    "an empty serial number": request(asked=der.sequence(der.sequence(cert_id(b"\x02\x00")))),
    "a padded serial number": request(
        asked=der.sequence(der.sequence(cert_id(b"\x02\x02\x00\x01")))
    ),
    "a serial number of 21 bytes": request(
        asked=der.sequence(der.sequence(cert_id(der.integer(1 << 160))))
    ),
    "too large": request(der.value(EXPLICIT_1, bytes(MOST_BYTES))),
}


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_refused(malformed: bytes) -> None:
    with pytest.raises(OcspRequestRefusedError):
        parse_request(malformed)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_understood(noise: bytes) -> None:
    """Threat 21: nothing but the refusal is raised."""
    try:
        parse_request(noise)
    except OcspRequestRefusedError:
        return


@given(
    st.sampled_from([PLAIN, WITH_NONCE, joined(PLAIN, PLAIN)]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(-2, 2),
)
def test_altered_requests(sound: bytes, changes: list[tuple[int, int]], longer: int) -> None:
    """Threat 21: near a sound request, where a parser goes furthest."""
    altered = bytearray(sound + bytes(max(longer, 0)))
    for place, byte in changes:
        altered[place % len(altered)] = byte
    try:
        read = parse_request(bytes(altered[: len(altered) + min(longer, 0)]))
    except OcspRequestRefusedError:
        return
    assert read.nonce is None or 1 <= len(read.nonce) <= 128
    assert all(0 <= each.serial_number < 1 << 159 for each in read.certificates)


ENCODED = base64.b64encode(WITH_NONCE)


@pytest.mark.parametrize(
    "text",
    [
        ENCODED,
        ENCODED.rstrip(b"="),
        quote(ENCODED, safe="").encode(),
        quote(ENCODED, safe="/").encode(),
        b"".join(b"%%%02x" % byte for byte in ENCODED),
    ],
    ids=["as it is", "no padding", "encoded", "slashes left", "all encoded"],
)
def test_gets(text: bytes) -> None:
    """RFC 6960, appendix A.1; clients differ in what they encode."""
    assert decode_get(text) == WITH_NONCE


@pytest.mark.parametrize("text", [b"A", b"AAA*", b"AA=A", b"AAAA====", b"A_-A", b"AAAA\n", b"%00"])
def test_gets_that_are_no_base64(text: bytes) -> None:
    with pytest.raises(OcspRequestRefusedError, match="base64"):
        decode_get(text)


def test_the_hashes_of_an_issuer() -> None:
    """The hashes are those that the cryptography library makes of an issuer."""
    device = issue_device(ca(), device_key("ec-p256").public_key(), "a camera")
    for algorithm in (hashes.SHA1(), hashes.SHA256()):
        made = ocsp.OCSPRequestBuilder().add_certificate(device, ISSUER, algorithm).build()
        hashed = hash_issuer(ISSUER, algorithm.name)
        assert hashed.name_hash == made.issuer_name_hash
        assert hashed.key_hash == made.issuer_key_hash
