"""Create and renew the local CA and server certificate of `sma serve --tls-self`.

`cli` calls this before the server starts. The files are in `tls-self/` below the data directory:
`ca.crt` is the public CA certificate, which clients must trust; `ca.pem` and `server.pem` each hold
a private key together with its certificate, so a crash cannot leave one without the other.
"""

import contextlib
import ipaddress
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.authority.ca.ceremony import random_serial_number
from birthmark_sma.config import Settings
from birthmark_sma.pki.local_tls import (
    THIS_MACHINE,
    Host,
    ca_serves,
    local_ca,
    server_certificate,
    server_certificate_serves,
)
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    write_private_file,
)

_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", re.ASCII)


class LocalCertificate(NamedTuple):
    """Paths of the files. `new_ca` is true if clients must trust a new CA certificate."""

    ca_file: Path
    key_and_certificate: Path
    new_ca: bool


class _Pair(NamedTuple):
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def settings_with_local_certificate(
    settings: Settings, address: str
) -> tuple[Settings, LocalCertificate]:
    """Return settings with the local certificate, after creating or renewing it if necessary.

    `address` is the IP address that the server listens on. Raises PrivateFileError if a file cannot
    be written, or if other users can read it.
    """
    local = _find_or_make(
        settings.data_dir / "tls-self", _hosts(settings.host, address), datetime.now(UTC)
    )
    file = local.key_and_certificate
    return settings.model_copy(update={"tls_cert": file, "tls_key": file}), local


def _find_or_make(folder: Path, hosts: list[Host], now: datetime) -> LocalCertificate:
    make_private_directory(folder)
    ca_file, server_file, to_trust = folder / "ca.pem", folder / "server.pem", folder / "ca.crt"
    ca = _read(ca_file)
    new_ca = ca is None or not ca_serves(ca.certificate, hosts, now)
    if ca is None or new_ca:
        key = _new_key()
        made = local_ca(key, hosts, now=now, serial_number=random_serial_number())
        ca = _Pair(key, made)
        _write(ca_file, ca)
    public = ca.certificate.public_bytes(serialization.Encoding.PEM)
    # Compared each time: a crash after ca.pem was written leaves an old ca.crt behind.
    if not to_trust.exists() or to_trust.read_bytes() != public:
        write_private_file(to_trust, public, replace=True)
    server = _read(server_file)
    if server is None or not server_certificate_serves(
        server.certificate, hosts, ca=ca.certificate, now=now
    ):
        key = _new_key()
        made = server_certificate(
            key.public_key(),
            hosts,
            ca=ca.certificate,
            ca_key=ca.key,
            now=now,
            serial_number=random_serial_number(),
        )
        _write(server_file, _Pair(key, made))
    return LocalCertificate(to_trust, server_file, new_ca)


def _hosts(host: str, address: str) -> list[Host]:
    """Return the host names and addresses for the certificate, without 0.0.0.0 and ::."""
    hosts: list[Host] = list(THIS_MACHINE)
    for each in (host, address):
        with contextlib.suppress(ValueError):
            parsed = ipaddress.ip_address(each)
            if not parsed.is_unspecified and parsed not in hosts:
                hosts.append(parsed)
            continue
        if _HOST_NAME.fullmatch(each) and each.lower() not in hosts:
            hosts.append(each.lower())
    return hosts


def _read(file: Path) -> _Pair | None:
    """Return key and certificate of a file, or None if it is missing or unusable.

    The caller then creates a new pair. Raises PrivateFileError if other users can read the file.
    """
    if not file.exists():
        return None
    content = read_private_file(file)
    try:
        key = serialization.load_pem_private_key(content, None)
        certificate = x509.load_pem_x509_certificate(content)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == (
            certificate.public_key()
        ):
            return _Pair(key, certificate)
    except (ValueError, TypeError):
        return None
    return None


def _write(file: Path, pair: _Pair) -> None:
    key = pair.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),  # mode 0600; the server must start without a passphrase
    )
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    write_private_file(file, key + certificate, replace=True)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
