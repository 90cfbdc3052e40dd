"""Make TLS certificates while a test runs, and SSL contexts of clients that trust them."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
_MAY_SIGN_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, in memory and as files."""

    certificate: x509.Certificate
    key: Any
    certificate_file: Path
    key_file: Path

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables that make a server use this certificate."""
        return {"SMA_TLS_CERT": str(self.certificate_file), "SMA_TLS_KEY": str(self.key_file)}


class TestCa:
    """A CA for one test. It writes its certificates and keys into a folder."""

    __test__ = False  # the name begins with Test, and pytest must not collect it

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.certificate = (
            _begun(self._name, self._name, self._key.public_key(), -DAY, 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_MAY_SIGN_CERTIFICATES, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(_pem(self.certificate))

    def issue(
        self,
        name: str,
        *,
        client: bool = False,
        key: Any = None,
        begin: timedelta = -DAY,
        end: timedelta = 10 * DAY,
    ) -> Issued:
        """Issue a certificate for a server at 127.0.0.1 and localhost, or for a client.

        `begin` and `end` are relative to now.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
        ]
        certificate = (
            _begun(_named(name), self._name, key.public_key(), begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        issued = Issued(certificate, key, self.folder / f"{name}.crt", self.folder / f"{name}.key")
        issued.certificate_file.write_bytes(_pem(certificate))
        issued.key_file.touch(0o600)
        issued.key_file.write_bytes(key_pem(key))
        return issued

    def client_context(self, shown: Issued | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this CA. `shown` is its certificate."""
        return client_context(self.file, shown)


def client_context(ca_file: Path, shown: Issued | None = None) -> ssl.SSLContext:
    """Return the context of a client that trusts a CA, with a client certificate if given."""
    context = ssl.create_default_context(cafile=ca_file)
    if shown is not None:
        context.load_cert_chain(shown.certificate_file, shown.key_file)
    return context


def key_pem(key: Any, passphrase: bytes | None = None) -> bytes:
    """Return a private key as PKCS#8 PEM, encrypted if a passphrase is given."""
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return pem


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _begun(
    subject: x509.Name, issuer: x509.Name, public_key: Any, begin: timedelta, end: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )
