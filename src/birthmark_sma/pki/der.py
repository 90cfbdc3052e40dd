"""Encode the outer structure of certificates and CRLs in DER (RFC 5280, sections 4.1, 5.1; X.690).

The cryptography library encodes names, keys and the values of extensions. This module writes the
structure around them, for speed: it takes a fifth of the time of the library's certificate builder,
which matters for a million devices. The library's CRL builder also holds the interpreter's lock
(GIL) while it encodes, for one second per 100,000 entries.

`certificates` and `crl` call it. It never checks what it encodes: `profile_check` does.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.pki.profile_check import Prepared
from birthmark_sma.pki.profiles import CRITICAL

_BOOLEAN_TRUE = b"\x01\x01\xff"
_INTEGER, _BIT_STRING, _OCTET_STRING, _OBJECT_IDENTIFIER = 0x02, 0x03, 0x04, 0x06
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE = 0x17, 0x18, 0x30
_VERSION_2 = bytes.fromhex("020101")  # of a CRL; its version has no explicit tag
_VERSION_3 = bytes.fromhex("a003020102")
_EXTENSIONS = 0xA3  # explicit tag [3] (RFC 5280, section 4.1)
_CRL_EXTENSIONS = 0xA0  # explicit tag [0] (RFC 5280, section 5.1)


def tbs_certificate(prepared: Prepared, signature_algorithm: bytes) -> bytes:
    """Return the TBSCertificate, the part that is signed. `signature_algorithm` is already DER."""
    return _sequence(
        _VERSION_3,
        _integer(prepared.serial_number),
        signature_algorithm,
        prepared.issuer.public_bytes(),
        _sequence(_time(prepared.not_before), _time(prepared.not_after)),
        prepared.subject.public_bytes(),
        prepared.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        _value(_EXTENSIONS, _sequence(*_extensions(prepared.extensions))),
    )


def revoked_certificate(serial_number: int, revoked_at: datetime, extensions: bytes) -> bytes:
    """Return one entry of a CRL. `extensions` is the result of `crl_entry_extensions`."""
    return _sequence(_integer(serial_number), _time(revoked_at), extensions)


def crl_entry_extensions(*extensions: x509.ExtensionType) -> bytes:
    """Return the crlEntryExtensions of one entry, or no bytes if there are none."""
    return _sequence(*_extensions(extensions)) if extensions else b""


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
    return _sequence(
        _VERSION_2,
        signature_algorithm,
        issuer.public_bytes(),
        _time(this_update),
        _time(next_update),
        # Section 5.1.2.6: without entries, revokedCertificates must be absent.
        _sequence(*revoked_certificates) if revoked_certificates else b"",
        _value(_CRL_EXTENSIONS, _sequence(*_extensions(extensions))),
    )


def signed(tbs: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Return a Certificate or CertificateList: the signed part, the algorithm and the signature."""
    return _sequence(tbs, signature_algorithm, _value(_BIT_STRING, b"\0" + signature))


def _extensions(extensions: Iterable[x509.ExtensionType]) -> Iterable[bytes]:
    for extension in extensions:
        oid = extension.oid
        yield _sequence(
            _object_identifier(oid.dotted_string),
            _BOOLEAN_TRUE if oid in CRITICAL else b"",  # DER leaves out the DEFAULT value
            _value(_OCTET_STRING, extension.public_bytes()),
        )


def _value(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _sequence(*parts: bytes) -> bytes:
    return _value(_SEQUENCE, b"".join(parts))


def _integer(number: int) -> bytes:
    # One bit more than the number needs: the first bit is the sign.
    return _value(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=16)
def _time(time: datetime) -> bytes:
    """Encode a time in UTC, without fractions of a second (RFC 5280, section 4.1.2.5).

    Years before 2050 are UTCTime with a two-digit year, later ones GeneralizedTime.
    """
    time = time.astimezone(UTC)
    if time.year < 2050:
        return _value(_UTC_TIME, f"{time:%y%m%d%H%M%SZ}".encode())
    return _value(_GENERALIZED_TIME, f"{time.year:04}{time:%m%d%H%M%SZ}".encode())


# The first two arcs share one number (X.690, section 8.19.4). Each number is written in base 128,
# and every byte but its last has the high bit set.
@lru_cache(maxsize=32)
def _object_identifier(dotted: str) -> bytes:
    first, second, *others = map(int, dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *others):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        content += bytes(reversed(septets))
    return _value(_OBJECT_IDENTIFIER, bytes(content))
