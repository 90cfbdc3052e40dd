"""Make an authority and certificates that are the same each time.

All times are fixed, serial numbers are digests, and ECDSA takes its nonces from RFC 6979.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark_sma.pki import certificates, names
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.keys.key_policy import DeviceKey
from vectors.generator.seeded_keys import p256, secret

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
"""The time at which all vectors are verified, unless a vector has its own time."""

NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)
CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


class SeededSigner(Signer):
    """A signer whose signatures are the same each time (RFC 6979)."""

    __slots__ = ()

    def sign(self, data: bytes) -> bytes:
        """Return the deterministic ECDSA signature."""
        assert isinstance(self.key, ec.EllipticCurvePrivateKey)  # noqa: S101 - the type above
        return self.key.sign(data, ec.ECDSA(self.hash_algorithm, deterministic_signing=True))


@dataclass(frozen=True)
class SeededCa:
    """A root, and an intermediate that it certified."""

    root_signer: Signer
    root: x509.Certificate
    signer: Signer
    intermediate: x509.Certificate


@cache
def authority(name: str = "test authority", now: datetime = NOW - timedelta(days=180)) -> SeededCa:
    """Return the authority with this name, created at the time `now`."""
    root_signer = SeededSigner(p256(f"{name}, root"))
    signer = SeededSigner(p256(f"{name}, intermediate"))
    root = certificates.sign(
        certificates.prepare_root(
            root_signer.public_key, now=now, serial_number=serial_number(f"{name}, root")
        ),
        root_signer,
    )
    intermediate = certificates.sign(
        certificates.prepare_intermediate(
            signer.public_key,
            issuer=root,
            now=now,
            serial_number=serial_number(f"{name}, intermediate"),
        ),
        root_signer,
        issuer=root,
    )
    return SeededCa(root_signer, root, signer, intermediate)


def device_certificate(
    ca: SeededCa, key: DeviceKey, device_serial: str, now: datetime = NOW - timedelta(days=1)
) -> x509.Certificate:
    """Issue a device certificate as the authority does."""
    prepared = certificates.prepare_device(
        key,
        device_serial,
        issuer=ca.intermediate,
        now=now,
        serial_number=serial_number(f"device {device_serial} {now}"),
    )
    return certificates.sign(prepared, ca.signer, issuer=ca.intermediate)


def hand_made(
    key: DeviceKey,
    common_name: str,
    *extensions: x509.ExtensionType,
    issuer: x509.Certificate,
    signer: Signer,
    lasting: timedelta = timedelta(days=30),
    alternative_names: Sequence[x509.GeneralName] | None = None,
) -> x509.Certificate:
    """Sign a certificate with any extensions, also one that the authority would refuse to issue.

    If `alternative_names` is None, it has the URN of a device. An empty list leaves it out.
    """
    urn = x509.UniformResourceIdentifier(names.device_urn(common_name))
    if alternative_names is None:
        alternative_names = [urn]
    builder = (
        x509.CertificateBuilder()
        .subject_name(names.distinguished_name(common_name))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(serial_number(f"hand-made {common_name}"))
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + lasting)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key), critical=False
        )
    )
    if alternative_names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(alternative_names), critical=False
        )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer.key, signer.hash_algorithm, ecdsa_deterministic=True)


def serial_number(label: str) -> int:
    """Return a serial number of 159 bits."""
    return int.from_bytes(secret(label)[:19], "big") | 1 << 158


def pem(certificate: x509.Certificate) -> str:
    """Return a certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate in DER."""
    return certificate.public_bytes(Encoding.DER)
