"""The files of one provisioned device: written whole, or resumed after a crash.

The private key is on disk before the authority is asked, in a directory that carries another name
until everything is there. A run that was cut off finds that key, asks under the same
Idempotency-Key, gets the first answer again, and finishes.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.authority.provisioning.service import Provisioned
from birthmark_sma.errors import PrivateFileError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    sync_directory,
    write_private_file,
)

PRIVATE_KEY = "device_private_key.pem"
CERTIFICATE = "device_certificate.pem"
CHAIN = "certificate_chain.pem"
DATA = "provisioning_data.json"


@dataclass(frozen=True, slots=True)
class PendingDevice:
    """A device whose key is safe on disk and whose other files are not there yet."""

    output_dir: Path
    partial_dir: Path
    private_key: str = field(repr=False)
    public_key: str
    resumed: bool

    @property
    def idempotency_key(self) -> str:
        """The same for the same key, so that a resumed run gets the first answer."""
        return "files-" + hashlib.sha256(self.public_key.encode()).hexdigest()


def begin(output_dir: Path) -> PendingDevice:
    """Make a key pair, or find that of a run that was cut off.

    Raises PrivateFileError where the directory holds files already, or cannot be written.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise PrivateFileError(
            f"{output_dir} is not empty: a device's files are never overwritten. Name another"
            " place with --output-dir."
        )
    partial_dir = output_dir.with_name(f".{output_dir.name}.partial")
    make_private_directory(output_dir.parent)
    make_private_directory(partial_dir)
    key_file = partial_dir / PRIVATE_KEY
    resumed = key_file.exists()
    if not resumed:
        write_private_file(key_file, new_private_key())
    private_pem = read_private_file(key_file)
    return PendingDevice(
        output_dir, partial_dir, private_pem.decode(), public_half(private_pem), resumed
    )


def finish(pending: PendingDevice, provisioned: Provisioned, data: dict[str, Any]) -> None:
    """Write the remaining files and give the directory its name: all of them or none."""
    chain = provisioned.device_certificate + "".join(provisioned.certificate_chain)
    everything = data | {
        "device_certificate": provisioned.device_certificate,
        "certificate_chain": chain,
        "device_private_key": pending.private_key,
        "device_public_key": pending.public_key,
    }
    files = {
        CERTIFICATE: provisioned.device_certificate,
        CHAIN: chain,
        DATA: json.dumps(everything, indent=2) + "\n",
    }
    for name, content in files.items():
        write_private_file(pending.partial_dir / name, content.encode(), replace=True)
    for stray in pending.partial_dir.glob(".*.partial"):
        stray.unlink()
    try:
        pending.partial_dir.rename(pending.output_dir)  # replaces an empty directory at most
        sync_directory(pending.output_dir.parent)
    except OSError as error:
        raise PrivateFileError(
            f"{pending.output_dir} cannot be written: {error.strerror}. The files are in"
            f" {pending.partial_dir}."
        ) from None


def abandon(pending: PendingDevice) -> None:
    """Remove what `begin` made for a device that was refused; what an earlier run made stays."""
    if not pending.resumed:
        (pending.partial_dir / PRIVATE_KEY).unlink()
        pending.partial_dir.rmdir()


def new_private_key() -> bytes:
    """Return a new P-256 key as PEM PKCS#8, not encrypted: what a device keeps."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_half(private_pem: bytes) -> str:
    """Return the public key of a private one, as PEM SubjectPublicKeyInfo."""
    key = serialization.load_pem_private_key(private_pem, None)
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
