"""Parse OCSP requests (RFC 6960, section 4.1), in DER or as the base64 text of a GET.

`authority.ocsp` calls it for every request, from anybody. It must never raise anything but
OcspRequestRefusedError, and never interpret more than it needs: the requestor's name and the
signature of a request are ignored (RFC 9919, section 3.1.2).

The cryptography library parses requests for one certificate only, and one with several is an error
there. Other implementations send several, so they are parsed here.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from birthmark_sma.errors import OcspRequestRefusedError
from birthmark_sma.pki.parsing import Element, elements

MOST_BYTES = 8_192
"""The size limit of a request in DER. One certificate takes about 80 bytes, or 110 with a nonce."""
MOST_CERTIFICATES = 10
"""The most certificates in one request. RFC 9919, section 3.1.1, lets clients ask for one."""
MOST_NONCE_BYTES = 128
"""RFC 9654, section 2.1."""
_MOST_SERIAL_BYTES = 20  # RFC 5280, section 4.1.2.2
_MOST_HASH_BYTES = 64

_BOOLEAN, _INTEGER, _OCTET_STRING, _OBJECT_IDENTIFIER, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x30
_VERSION, _REQUESTOR_NAME, _EXTENSIONS = 0xA0, 0xA1, 0xA2  # in a TBSRequest
_SIGNATURE = _SINGLE_EXTENSIONS = 0xA0
_VERSION_1 = b"\x02\x01\x00"
_TRUE = b"\xff"
_NONCE = bytes.fromhex("2b0601050507300102")  # id-pkix-ocsp-nonce
_HASHES = {bytes.fromhex("2b0e03021a"): "sha1", bytes.fromhex("608648016503040201"): "sha256"}
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


class IssuerHashes(NamedTuple):
    """The name and public key of an issuer as a CertID has them.

    `algorithm` is "sha1" or "sha256", or an empty text for any other one: that of no issuer here.
    """

    algorithm: str
    name_hash: bytes
    key_hash: bytes


class CertId(NamedTuple):
    """A certificate that is asked about (RFC 6960, section 4.1.1)."""

    issuer: IssuerHashes
    serial_number: int


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """A request for the status of 1 to 10 certificates. `nonce` is None, or 1 to 128 bytes."""

    certificates: tuple[CertId, ...]
    nonce: bytes | None = field(repr=False)


def decode_get(text: bytes) -> bytes:
    """Return the DER of the request in the path of a GET (RFC 6960, appendix A.1).

    `text` is base64, whose characters may be percent-encoded. Padding may be missing.
    Raises OcspRequestRefusedError.
    """
    decoded = unquote_to_bytes(text)
    if not _BASE64.fullmatch(decoded):
        raise OcspRequestRefusedError("The request is not base64.")
    plain = decoded.rstrip(b"=")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise OcspRequestRefusedError("The request is not base64.") from None


def parse_request(der: bytes) -> OcspRequest:
    """Return a request. Raises OcspRequestRefusedError if it is malformed or too large."""
    if len(der) > MOST_BYTES:
        raise OcspRequestRefusedError(f"A request has at most {MOST_BYTES} bytes.")
    try:
        return _parse(der)
    except ValueError:  # of `elements`, for an element that is cut off
        raise OcspRequestRefusedError("The request is not DER.") from None


def _parse(der: bytes) -> OcspRequest:
    parts = _open(_one(elements(der)), _SEQUENCE)
    _take(parts, _SIGNATURE, 1)
    tbs = _open(_one(parts), _SEQUENCE)
    version = _take(tbs, _VERSION, 0)
    if version is not None and version.content != _VERSION_1:
        raise OcspRequestRefusedError("The version of the request is not 1.")
    _take(tbs, _REQUESTOR_NAME, 0)
    extensions = _take(tbs, _EXTENSIONS, 1)
    asked = _open(_one(tbs), _SEQUENCE)
    if not 1 <= len(asked) <= MOST_CERTIFICATES:
        raise OcspRequestRefusedError(f"A request is for 1 to {MOST_CERTIFICATES} certificates.")
    nonce = _nonce(extensions)
    return OcspRequest(tuple(map(_cert_id, asked)), nonce)


def _cert_id(request: Element) -> CertId:
    parts = _open(request, _SEQUENCE)
    extensions = _take(parts, _SINGLE_EXTENSIONS, 1)
    if extensions is not None:
        _read_extensions(extensions, known=())
    fields = _open(_one(parts), _SEQUENCE)
    if len(fields) != 4:
        raise OcspRequestRefusedError("A CertID has four fields.")
    algorithm = _open(fields[0], _SEQUENCE)
    if not 1 <= len(algorithm) <= 2 or algorithm[0].tag != _OBJECT_IDENTIFIER:
        raise OcspRequestRefusedError("The hash algorithm is malformed.")
    issuer = IssuerHashes(
        _HASHES.get(algorithm[0].content, ""),
        _content(fields[1], _OCTET_STRING, _MOST_HASH_BYTES),
        _content(fields[2], _OCTET_STRING, _MOST_HASH_BYTES),
    )
    return CertId(issuer, _serial_number(fields[3]))


def _serial_number(field: Element) -> int:
    content = _content(field, _INTEGER, _MOST_SERIAL_BYTES)
    # The response repeats the number, so it has one encoding: the shortest (X.690, section 8.3.2).
    if content[0] >= 0x80 or (len(content) > 1 and content[0] == 0 and content[1] < 0x80):
        raise OcspRequestRefusedError("The serial number is negative, or not DER.")
    return int.from_bytes(content, "big")


def _nonce(extensions: Element | None) -> bytes | None:
    if extensions is None:
        return None
    found = _read_extensions(extensions, known=(_NONCE,)).get(_NONCE)
    if found is None:
        return None
    return _content(_one(elements(found)), _OCTET_STRING, MOST_NONCE_BYTES)


def _read_extensions(tagged: Element, known: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the values of extensions by OID. Refuse a critical one that is not known here."""
    found: dict[bytes, bytes] = {}
    for each in _open(_one(elements(tagged.content)), _SEQUENCE):
        fields = _open(each, _SEQUENCE)
        critical = _take(fields, _BOOLEAN, 1)
        if (
            len(fields) != 2
            or fields[0].tag != _OBJECT_IDENTIFIER
            or fields[1].tag != _OCTET_STRING
        ):
            raise OcspRequestRefusedError("An extension is malformed.")
        oid = fields[0].content
        if oid in found:
            raise OcspRequestRefusedError("An extension is there twice.")
        if critical is not None and critical.content == _TRUE and oid not in known:
            raise OcspRequestRefusedError("A critical extension is not known here.")
        found[oid] = fields[1].content
    return found


def _one(parts: Sequence[Element]) -> Element:
    """Return the only element."""
    if len(parts) != 1:
        raise OcspRequestRefusedError("The request has a wrong number of elements.")
    return parts[0]


def _open(element: Element, tag: int) -> list[Element]:
    if element.tag != tag:
        raise OcspRequestRefusedError("An element of the request has the wrong type.")
    return elements(element.content)


def _content(element: Element, tag: int, most: int) -> bytes:
    """Return the content of an element that is neither empty nor longer than `most` bytes."""
    if element.tag != tag or not 1 <= len(element.content) <= most:
        raise OcspRequestRefusedError("An element of the request has the wrong type or size.")
    return element.content


def _take(parts: list[Element], tag: int, place: int) -> Element | None:
    """Remove and return the optional element with this tag at a place, or return None."""
    return parts.pop(place) if len(parts) > place and parts[place].tag == tag else None
