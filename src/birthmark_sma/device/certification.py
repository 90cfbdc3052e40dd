"""Make a camera's requests for certificates, and check the responses.

`provisioning` and `renewal` share it. A response is used only if it is for this camera's key and
serial, under a trusted root, with secrets that only this camera can open. No clock, no I/O.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device.state import load_private_key
from birthmark_sma.device.table_key_decryption import open_table_keys
from birthmark_sma.errors import PathRefusedError, ProtocolError
from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.pki.names import requested_subject
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.protocol.key_derivation import MASTER_KEY_BYTES
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER, TABLES_PER_DEVICE

IsTrusted = Callable[[str], bool]
"""Returns True for the SHA-256 fingerprint, in lower-case hex, of a root that the camera trusts."""
_BINDING = frozenset({"device_serial", "certificate_sha256", "table_keys"})


class UnusableAnswerError(Exception):
    """A 200 with content that the camera did not ask for. Its callers handle it."""


@dataclass(frozen=True, slots=True)
class Certified:
    """A checked response. Certificates are PEM; byte strings are hex."""

    device_certificate: str
    certificate_chain: tuple[str, str]
    """The intermediate certificate, then the root certificate."""
    table_keys: dict[str, str] = field(repr=False)
    fields: dict[str, Any] = field(repr=False)
    """The members of the response."""
    secret: dict[str, Any] = field(repr=False)
    """The members of the decrypted secrets."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key pair on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def make_csr(
    device_serial: str, signing: ec.EllipticCurvePrivateKey, recipient: ec.EllipticCurvePrivateKey
) -> str:
    """Return a CSR in PEM that names the serial and the recipient key.

    Its signature covers both, so an attacker on the network cannot change them.
    """
    urn = recipient_urn(recipient.public_key())
    named = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(urn)])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(requested_subject(device_serial))
        .add_extension(named, critical=False)
    )
    return to_pem(csr.sign(signing, hashes.SHA256()))


def read_certified(
    answer: bytes,
    *,
    device_serial: str,
    private_key: str,
    key_encryption_private_key: str,
    is_trusted: IsTrusted,
    more_secrets: frozenset[str] = frozenset(),
) -> Certified:
    """Check a response to a CSR, and return its content.

    The keys are those of the request, in PEM. `more_secrets` are the expected members of the
    secrets beside serial, certificate and table keys.

    Raises UnusableAnswerError with the reason.
    """
    try:
        fields: dict[str, Any] = json.loads(answer)
        leaf = _certificate(fields["device_certificate"])
        intermediate, root = (_certificate(pem) for pem in fields["certificate_chain"])
        certified = leaf.public_key()
        secret = open_table_keys(
            text(fields["sealed_secrets"]), load_private_key(key_encryption_private_key)
        )
        if set(secret) != _BINDING | more_secrets:
            raise ValueError
        table_keys = _table_keys(secret["table_keys"], fields["table_assignments"])
    except (KeyError, TypeError, ValueError, RecursionError, UnsupportedAlgorithm, ProtocolError):
        raise foreign_answer() from None
    if certified != load_private_key(private_key).public_key():
        raise UnusableAnswerError("the certificate in its response is for another key")
    if not is_trusted(root.fingerprint(hashes.SHA256()).hex()):
        raise UnusableAnswerError("its root certificate is not one that the app pinned")
    try:
        # The camera's clock may be wrong, so the path is checked at a time from the certificates
        # themselves. An impossible date, such as in the year 0, raises ValueError.
        valid_from = max(each.not_valid_before_utc for each in (leaf, intermediate, root))
        named = verify_path(leaf, [intermediate], root=root, now=valid_from)
    except (PathRefusedError, ValueError):
        raise UnusableAnswerError(
            "the certificates in its response do not form a valid path"
        ) from None
    if named != device_serial:
        raise UnusableAnswerError("the certificate in its response is for another camera")
    # The secrets name their device and certificate. Others belong to another camera or to another
    # response, which an attacker on the network may have recorded.
    sealed_for = (secret["device_serial"], secret["certificate_sha256"])
    if sealed_for != (device_serial, leaf.fingerprint(hashes.SHA256()).hex()):
        raise UnusableAnswerError("the secrets in its response are for another certificate")
    return Certified(to_pem(leaf), (to_pem(intermediate), to_pem(root)), table_keys, fields, secret)


def foreign_answer() -> UnusableAnswerError:
    """Return the error for a response without the form of an authority's."""
    return UnusableAnswerError("the response does not come from such an authority")


def to_pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return a certificate or CSR as PEM."""
    return thing.public_bytes(serialization.Encoding.PEM).decode()


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PKCS#8 in PEM, without encryption: `state` seals the whole file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key of a key pair as SubjectPublicKeyInfo in PEM."""
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def hex_of(value: object, length: int) -> str:
    """Return a hex string in lower case. Raises ValueError or TypeError unless it has `length`."""
    content = bytes.fromhex(text(value))
    if len(content) != length:
        raise ValueError
    return content.hex()


def text(value: object) -> str:
    """Return a string unchanged. Raises TypeError for any other value."""
    if not isinstance(value, str):
        raise TypeError
    return value


def _table_keys(table_keys: object, tables: list[object]) -> dict[str, str]:
    """Return the master keys of the assigned tables, in hex. Raises ValueError or TypeError."""
    if not isinstance(table_keys, dict):
        raise TypeError
    if not all(type(table) is int and 0 <= table <= MAX_WIRE_INTEGER for table in tables):
        raise ValueError
    if len(table_keys) != TABLES_PER_DEVICE or set(table_keys) != {str(table) for table in tables}:
        raise ValueError
    return {table: hex_of(key, MASTER_KEY_BYTES) for table, key in table_keys.items()}


def _certificate(pem: object) -> x509.Certificate:
    try:
        # InvalidVersion is no ValueError in this library, so callers would not catch it.
        return x509.load_pem_x509_certificate(text(pem).encode())
    except x509.InvalidVersion:
        raise ValueError from None
