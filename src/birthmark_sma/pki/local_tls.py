"""Create TLS certificates for one machine: a local CA, and the server certificates under it.

`web.transport.local_certificate` calls it for the HTTPS of `sma serve` on a laptop. The
certificates are independent of the authority's, and no device sees them. Name constraints limit the
CA to the host names it was made for (RFC 5280, section 4.2.1.10): an attacker with its key cannot
impersonate other sites to clients that trust the CA.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from birthmark_sma.pki.profiles import CLOCK_SKEW, key_usage

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Host: TypeAlias = str | Address

THIS_MACHINE: tuple[Host, ...] = (
    "localhost",
    ipaddress.IPv4Address("127.0.0.1"),
    ipaddress.IPv6Address("::1"),
)
CA_VALIDITY = timedelta(days=1_825)
SERVER_VALIDITY = timedelta(days=90)
RENEWED_BEFORE_ITS_END = timedelta(days=30)
"""A server certificate with less validity than this left is replaced."""


def local_ca(
    key: ec.EllipticCurvePrivateKey, hosts: Sequence[Host], *, now: datetime, serial_number: int
) -> x509.Certificate:
    """Return a self-signed CA certificate whose name constraints permit these hosts only."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The name contains a part of the key's identifier, so that trust stores with several local CAs
    # can distinguish them.
    name = _named(f"Birthmark SMA local CA {identifier.digest.hex()[:8]}")
    builder = (
        _begun(key.public_key(), now, CA_VALIDITY, serial_number)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[_subtree(host) for host in hosts], excluded_subtrees=None
            ),
            critical=True,
        )
    )
    return builder.sign(key, hashes.SHA256())


def server_certificate(
    public_key: ec.EllipticCurvePublicKey,
    hosts: Sequence[Host],
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    serial_number: int,
) -> x509.Certificate:
    """Return a TLS server certificate for these hosts, signed by the local CA."""
    builder = (
        _begun(public_key, now, SERVER_VALIDITY, serial_number)
        .subject_name(_named("Birthmark SMA on this machine"))
        .issuer_name(ca.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
    )
    return builder.sign(ca_key, hashes.SHA256())


def ca_serves(ca: x509.Certificate, hosts: Sequence[Host], now: datetime) -> bool:
    """Return True if a local CA may name these hosts and outlives a certificate signed now."""
    try:
        constraints = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    permitted = constraints.permitted_subtrees or []
    return (
        ca.not_valid_before_utc <= now
        and now + SERVER_VALIDITY <= ca.not_valid_after_utc
        and all(_subtree(host) in permitted for host in hosts)
    )


def server_certificate_serves(
    certificate: x509.Certificate, hosts: Sequence[Host], *, ca: x509.Certificate, now: datetime
) -> bool:
    """Return True if this CA issued the certificate for these hosts and it does not expire soon.

    "Soon" is within 30 days (RENEWED_BEFORE_ITS_END).
    """
    try:
        certificate.verify_directly_issued_by(ca)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        certificate.not_valid_before_utc <= now
        and now + RENEWED_BEFORE_ITS_END < certificate.not_valid_after_utc
        and all(_general_name(host) in names for host in hosts)
    )


def _begun(
    public_key: ec.EllipticCurvePublicKey, now: datetime, validity: timedelta, serial_number: int
) -> x509.CertificateBuilder:
    begin = now.replace(microsecond=0) - CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .public_key(public_key)
        .serial_number(serial_number)
        .not_valid_before(begin)
        .not_valid_after(begin + validity)
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: Host) -> x509.GeneralName:
    return x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)


def _subtree(host: Host) -> x509.GeneralName:
    if isinstance(host, str):
        return x509.DNSName(host)
    return x509.IPAddress(ipaddress.ip_network(host))  # address with a full mask
