"""Verify PKCS#10 certificate signing requests (RFC 2986), which prove possession of a private key.

The authority uses only the public key and the proof. It chooses subject and extensions itself. A
request that names another device is refused: it was stolen, or two requests were mixed up. Every
error is a CsrRefusedError or a KeyRefusedError.
"""

from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import CsrRefusedError
from birthmark_sma.pki.keys.key_policy import DeviceKey, check_encoding, check_key
from birthmark_sma.pki.names import DEVICE_URN_PREFIX, RECIPIENT_KEY_URN_PREFIX, device_urn, fold
from birthmark_sma.pki.parsing import MalformedPemError, elements, read_block

_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_EXTENSION_REQUESTS = {
    x509.ObjectIdentifier("1.2.840.113549.1.9.14"),  # RFC 2985, section 5.4.2
    x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"),  # Microsoft's
}
"""The two attribute types that carry requested extensions."""
_TELETEX_STRING = 0x14


def verify(request: x509.CertificateSigningRequest, device_serial: str) -> DeviceKey:
    """Verify a request that `load` returned, and return its public key (RFC 2986, section 3).

    Raises CsrRefusedError if the signature does not verify or if the request names a device other
    than `device_serial`, and KeyRefusedError if the key policy refuses the key.
    """
    try:
        public_key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CsrRefusedError(
            "The public key in the CSR cannot be read: it is damaged, or its algorithm is unknown."
        ) from None
    # Check the key policy before the signature: verifying under a refused key could be slow, or
    # prove nothing.
    device_key = check_key(public_key)
    _check_signature(request, device_key)
    for place, name in requested_names(request):
        if not _is_name_of(name, device_serial):
            raise CsrRefusedError(
                f"The CSR's {place} is not the device_serial of this request: leave it out, or make"
                " them equal."
            )
    return device_key


def decode(pem: str) -> bytes:
    """Return the DER of a PEM request, which is not parsed. Raises CsrRefusedError."""
    try:
        return read_block(pem, _LABELS, "CSR (PKCS#10)")
    except MalformedPemError as error:
        raise CsrRefusedError(*error.args) from None


def load(pem: str) -> x509.CertificateSigningRequest:
    """Parse a PEM PKCS#10 request. `verify` must still check its signature and names.

    Raises CsrRefusedError if it is malformed, and KeyRefusedError if the library would read its
    public key as a different kind of key.
    """
    encoded = decode(pem)
    try:
        request = x509.load_der_x509_csr(encoded)
        subject, public_key = elements(elements(request.tbs_certrequest_bytes)[0].content)[1:3]
    except x509.InvalidVersion as error:
        raise CsrRefusedError(
            f"The CSR has the version number {error.parsed_version}. PKCS#10 has version 1"
            " only, which is encoded as 0 (RFC 2986, section 4.1)."
        ) from None
    except (ValueError, TypeError):
        raise CsrRefusedError(
            "The CSR cannot be read: its PEM does not contain a PKCS#10 request, or the"
            " request is damaged."
        ) from None
    check_encoding(public_key.whole)
    _check_names_can_be_read(request, subject.content)
    return request


def requested_names(request: x509.CertificateSigningRequest) -> Iterator[tuple[str, str]]:
    """Yield each device name that a request asks for, with the field that it is in.

    The URI of a recipient key is left out, because it names a key and not a device.

    Raises CsrRefusedError for a subjectAltName of another type than dNSName, URI or directoryName.
    """
    yield from _names_in(request.subject)
    try:
        alternatives = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    for alternative in alternatives.value:
        if isinstance(alternative, x509.DirectoryName):
            yield from _names_in(alternative.value, "subjectAltName, ")
        elif isinstance(alternative, x509.DNSName | x509.UniformResourceIdentifier):
            if not alternative.value.startswith(RECIPIENT_KEY_URN_PREFIX):
                yield "subjectAltName", alternative.value
        else:
            raise CsrRefusedError(
                "The CSR's subjectAltName has a name that is neither a dNSName nor a URI nor a"
                " directoryName: leave it out."
            )


def _names_in(name: x509.Name, prefix: str = "") -> Iterator[tuple[str, str]]:
    for oid, place in (
        (NameOID.COMMON_NAME, "common name"),
        (NameOID.SERIAL_NUMBER, "serialNumber"),
    ):
        for attribute in name.get_attributes_for_oid(oid):
            # A value that is not text yields an empty name, which is not equal to any serial.
            yield f"{prefix}{place}", attribute.value if isinstance(attribute.value, str) else ""


def _is_name_of(name: str, device_serial: str) -> bool:
    if name.startswith(DEVICE_URN_PREFIX):
        return name == device_urn(device_serial)
    return fold(name) == fold(device_serial)


def _check_names_can_be_read(request: x509.CertificateSigningRequest, subject: bytes) -> None:
    """Raise CsrRefusedError if the subject or the extensions are malformed.

    The library parses both only when they are first accessed.
    """
    if sum(attribute.oid in _EXTENSION_REQUESTS for attribute in request.attributes) > 1:
        raise CsrRefusedError("The CSR has two lists of requested extensions: send one.")
    try:
        list(request.subject)
    except (ValueError, TypeError):
        if _has_teletex_string(subject):
            raise CsrRefusedError(
                "The CSR's subject has a TeletexString, which programs read differently: use"
                " UTF8String (RFC 5280, section 4.1.2.4)."
            ) from None
        raise CsrRefusedError("The CSR's subject cannot be read: use UTF8String.") from None
    try:
        list(request.extensions)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise CsrRefusedError("The CSR's requested extensions cannot be read.") from None


def _has_teletex_string(subject: bytes) -> bool:
    """Return True if a Name (SETs of SEQUENCEs of type and value) contains a TeletexString."""
    try:
        return any(
            part.tag == _TELETEX_STRING
            for relative_name in elements(subject)
            for attribute in elements(relative_name.content)
            for part in elements(attribute.content)
        )
    except ValueError:
        return False


def _check_signature(request: x509.CertificateSigningRequest, key: DeviceKey) -> None:
    if not _hash_is_sound(request):
        raise CsrRefusedError("The CSR is signed over a broken hash: use SHA-256.")
    if _signature_verifies(request):
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and _is_signed_as_p1363(request, key):
        raise CsrRefusedError(
            "The CSR's signature is r and s side by side (IEEE P1363, as WebCrypto makes it):"
            " encode it as a DER ECDSA-Sig-Value (RFC 3279, section 2.2.3)."
        )
    raise CsrRefusedError(
        "The CSR's signature does not verify under its own key: sign it with the private key of"
        " the public key inside."
    )


def _hash_is_sound(request: x509.CertificateSigningRequest) -> bool:
    """Return True if the signature uses SHA-2, or hashes by itself as Ed25519 does."""
    try:
        algorithm = request.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return False
    return algorithm is None or isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)


def _signature_verifies(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (UnsupportedAlgorithm, ValueError):
        return False


def _is_signed_as_p1363(
    request: x509.CertificateSigningRequest, key: ec.EllipticCurvePublicKey
) -> bool:
    """Return True if the signature verifies when read as r and s side by side (IEEE P1363)."""
    signature, hash_algorithm = request.signature, request.signature_hash_algorithm
    half = (key.key_size + 7) // 8
    if len(signature) != 2 * half or hash_algorithm is None:
        return False
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    try:
        key.verify(
            encode_dss_signature(r, s), request.tbs_certrequest_bytes, ec.ECDSA(hash_algorithm)
        )
    except InvalidSignature:
        return False
    return True
