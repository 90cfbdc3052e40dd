"""Encode the structure of certificates, CRLs and OCSP responses in DER (RFC 5280; X.690).

The cryptography library encodes names, keys and the values of extensions. This module writes the
structure around them, for speed: it takes a fifth of the time of the library's certificate builder,
which matters for a million devices. The library's CRL builder also holds the interpreter's lock
(GIL) while it encodes, for one second per 100,000 entries.

`certificates`, `crl` and `ocsp.responses` call it. It never checks what it encodes: `profile_check`
does.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.pki.profile_check import Prepared
from birthmark_sma.pki.profiles import CRITICAL

_BOOLEAN_TRUE = b"\x01\x01\xff"
_INTEGER, _BIT_STRING, OCTET_STRING, _OBJECT_IDENTIFIER = 0x02, 0x03, 0x04, 0x06
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE = 0x17, 0x18, 0x30
_VERSION_2 = bytes.fromhex("020101")  # of a CRL; its version has no explicit tag
_VERSION_3 = bytes.fromhex("a003020102")
_EXTENSIONS = 0xA3  # explicit tag [3] (RFC 5280, section 4.1)
_CRL_EXTENSIONS = 0xA0  # explicit tag [0] (RFC 5280, section 5.1)


def tbs_certificate(prepared: Prepared, signature_algorithm: bytes) -> bytes:
    """Return the TBSCertificate, the part that is signed. `signature_algorithm` is already DER."""
    return sequence(
        _VERSION_3,
        integer(prepared.serial_number),
        signature_algorithm,
        prepared.issuer.public_bytes(),
        sequence(_time(prepared.not_before), _time(prepared.not_after)),
        prepared.subject.public_bytes(),
        prepared.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        value(_EXTENSIONS, sequence_of_extensions(prepared.extensions)),
    )


def revoked_certificate(serial_number: int, revoked_at: datetime, extensions: bytes) -> bytes:
    """Return one entry of a CRL. `extensions` is the result of `crl_entry_extensions`."""
    return sequence(integer(serial_number), _time(revoked_at), extensions)


def crl_entry_extensions(*extensions: x509.ExtensionType) -> bytes:
    """Return the crlEntryExtensions of one entry, or no bytes if there are none."""
    return sequence_of_extensions(extensions) if extensions else b""


def tbs_cert_list(
    *,
    issuer: x509.Name,
    this_update: datetime,
    next_update: datetime,
    revoked_certificates: Sequence[bytes],
    extensions: Iterable[x509.ExtensionType],
    signature_algorithm: bytes,
) -> bytes:
    """Return the TBSCertList, the part of a CRL that is signed.

    `revoked_certificates` and `signature_algorithm` are already DER.
    """
    return sequence(
        _VERSION_2,
        signature_algorithm,
        issuer.public_bytes(),
        _time(this_update),
        _time(next_update),
        # Section 5.1.2.6: without entries, revokedCertificates must be absent.
        sequence(*revoked_certificates) if revoked_certificates else b"",
        value(_CRL_EXTENSIONS, sequence_of_extensions(extensions)),
    )


def signed(tbs: bytes, signature_algorithm: bytes, signature: bytes, more: bytes = b"") -> bytes:
    """Return a Certificate, CertificateList or BasicOCSPResponse.

    It has the signed part, the algorithm, the signature, and `more`, which is already DER.
    """
    return sequence(tbs, signature_algorithm, value(_BIT_STRING, b"\0" + signature), more)


def sequence_of_extensions(extensions: Iterable[x509.ExtensionType]) -> bytes:
    """Return Extensions (RFC 5280, section 4.1). Those in CRITICAL are critical."""
    return sequence(*map(_extension, extensions))


def _extension(extension: x509.ExtensionType) -> bytes:
    oid = extension.oid
    return sequence(
        object_identifier(oid.dotted_string),
        _BOOLEAN_TRUE if oid in CRITICAL else b"",  # DER leaves out the DEFAULT value
        value(OCTET_STRING, extension.public_bytes()),
    )


def value(tag: int, content: bytes) -> bytes:
    """Return an element with this tag and content."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def sequence(*parts: bytes) -> bytes:
    """Return a SEQUENCE of elements that are already DER."""
    return value(_SEQUENCE, b"".join(parts))


def integer(number: int) -> bytes:
    """Return an INTEGER that is not negative."""
    # One bit more than the number needs: the first bit is the sign.
    return value(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=16)
def _time(time: datetime) -> bytes:
    """Encode a time in UTC, without fractions of a second (RFC 5280, section 4.1.2.5).

    Years before 2050 are UTCTime with a two-digit year, later ones GeneralizedTime.
    """
    time = time.astimezone(UTC)
    if time.year < 2050:
        return value(_UTC_TIME, f"{time:%y%m%d%H%M%SZ}".encode())
    return generalized_time(time)


@lru_cache(maxsize=16)
def generalized_time(time: datetime) -> bytes:
    """Return a GeneralizedTime in UTC, in whole seconds (RFC 6960, section 4.2.2.1)."""
    time = time.astimezone(UTC)
    return value(_GENERALIZED_TIME, f"{time.year:04}{time:%m%d%H%M%SZ}".encode())


# The first two arcs share one number (X.690, section 8.19.4). Each number is written in base 128,
# and every byte but its last has the high bit set.
@lru_cache(maxsize=32)
def object_identifier(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *others = map(int, dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *others):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        content += bytes(reversed(septets))
    return value(_OBJECT_IDENTIFIER, bytes(content))
