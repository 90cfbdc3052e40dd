"""Make TLS certificates while a test runs, and SSL contexts of clients that trust them."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

DAY = timedelta(days=1)


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
        self._folder = folder
        self._ca = trustme.CA(organization_unit_name=name)
        self.file = folder / f"{name}.crt"
        self._ca.cert_pem.write_to_path(self.file)
        self._key: Any = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)

    def issue(
        self, name: str, *, rsa: bool = False, begin: timedelta = -DAY, end: timedelta = 10 * DAY
    ) -> Issued:
        """Issue a certificate for a server at 127.0.0.1 and localhost, which clients can use too.

        `begin` and `end` are relative to now.
        """
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            "localhost",
            "127.0.0.1",
            common_name=name,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
            not_before=now + begin,
            not_after=now + end,
        )
        [pem] = leaf.cert_chain_pems
        key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
        return self._store(name, x509.load_pem_x509_certificate(pem.bytes()), key)

    def issue_for_servers_only(self, name: str) -> Issued:
        """Issue a certificate whose extended key usage excludes clients; trustme makes none."""
        model = self.issue(name)
        old = model.certificate
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, old.public_key(), old.serial_number + 1
        )
        builder = builder.not_valid_before(old.not_valid_before_utc)
        builder = builder.not_valid_after(old.not_valid_after_utc)
        for each in old.extensions:
            is_usage = isinstance(each.value, x509.ExtendedKeyUsage)
            value = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(value if is_usage else each.value, each.critical)
        return self._store(name, builder.sign(self._key, hashes.SHA256()), model.key)

    def _store(self, name: str, certificate: x509.Certificate, key: Any) -> Issued:
        place = self._folder / name
        issued = Issued(certificate, key, place.with_suffix(".crt"), place.with_suffix(".key"))
        issued.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
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
