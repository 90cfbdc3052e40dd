"""Convert an X.509 certificate to texts for the pages of the dashboard."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

DUE = timedelta(days=90)
"""The dashboard warns the operator this long before a certificate expires."""

_USAGES = {
    "digital_signature": "digital signature",
    "key_cert_sign": "certificate signing",
    "crl_sign": "CRL signing",
}


@dataclass(frozen=True, slots=True)
class CertificateView:
    """The fields of a certificate as text. `name` is its role, such as "root" or "device"."""

    name: str
    subject: str
    issuer: str
    common_name: str
    serial_number: str
    not_before: datetime
    not_after: datetime
    left: timedelta
    public_key: str
    signature: str
    usage: str
    fingerprint: str
    pem: str

    @classmethod
    def of(cls, name: str, certificate: x509.Certificate, now: datetime) -> "CertificateView":
        """Return the view of a certificate. `now` determines the remaining time."""
        not_after = certificate.not_valid_after_utc
        [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        digest = certificate.signature_hash_algorithm
        return cls(
            name=name,
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            common_name=str(common_name.value),
            serial_number=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=not_after,
            left=not_after - now,
            public_key=_key(certificate),
            signature=_algorithm(certificate)
            + ("" if digest is None else f" with {digest.name.upper().replace('SHA', 'SHA-')}"),
            usage=_usage(certificate),
            fingerprint=certificate.fingerprint(SHA256()).hex(),
            pem=certificate.public_bytes(Encoding.PEM).decode("ascii"),
        )

    @property
    def is_due(self) -> bool:
        """True if the certificate expires in less than `DUE`, or has expired."""
        return self.left < DUE

    @property
    def is_over(self) -> bool:
        """True if the certificate has expired."""
        return self.left <= timedelta(0)


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case rsa.RSAPublicKey() as key:
            return f"RSA, {key.key_size:,} bits"
        case ec.EllipticCurvePublicKey() as key:
            return f"elliptic curve {key.curve.name}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
        case key:
            return type(key).__name__


def _algorithm(certificate: x509.Certificate) -> str:
    # A private attribute: cryptography has no public name of an OID.
    name = certificate.signature_algorithm_oid._name
    return "ECDSA" if name.startswith("ecdsa") else "RSA" if "RSA" in name else name


def _usage(certificate: x509.Certificate) -> str:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return "not restricted"
    return ", ".join(told for name, told in _USAGES.items() if getattr(usage, name)) or "none"
